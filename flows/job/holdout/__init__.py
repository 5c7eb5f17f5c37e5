"""The parts of a job that read the holdout: scores, leaks, robustness."""
