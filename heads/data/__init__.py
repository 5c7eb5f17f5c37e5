"""Images and texts: reading, preparing and varying them, and the batches of a data set."""
