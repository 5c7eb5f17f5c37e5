"""One variant's training: its epochs, its state, checkpoints, and all that a fit setting turns on."""
