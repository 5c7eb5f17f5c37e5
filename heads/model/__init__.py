"""A backbone with its heads as one model, what is frozen of it, and the arithmetic it computes in."""
