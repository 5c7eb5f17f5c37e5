"""Images: reading, preparing and augmenting them, and the batches of a data set."""
