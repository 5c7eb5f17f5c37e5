"""What labels look like as tensors: one shape a task, one number for what is missing."""

from __future__ import annotations

from torch import Tensor

# Class labels (N), label sets (N, C) of 0 and 1, masks (N, H, W) of class numbers: each has this where nothing is known.
MISSING_LABEL = -1


def has_label(labels: Tensor) -> Tensor:
    """Which samples (N) of these labels are labelled at all; a mask is where any of its pixels is."""
    return (labels.flatten(1) != MISSING_LABEL).any(dim=1) if labels.ndim > 1 else labels != MISSING_LABEL
