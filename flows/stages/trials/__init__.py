"""Trials of a candidate before it is promoted: whether it loads, how fast and how robust it is, and leaks of the holdout."""
