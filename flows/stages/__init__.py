"""The stages of a retraining, a file each: it takes frozen values, calls one room, and returns frozen values."""
