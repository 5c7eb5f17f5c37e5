"""The stages of a retraining, a file each: a stage takes frozen values, calls one room, and returns frozen values."""
