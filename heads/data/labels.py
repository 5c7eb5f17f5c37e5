"""What inputs and labels look like as tensors, whatever the head's task: one shape a task, one number for what is missing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Images (N, 3, S, S), or features by the number of their stage.
Inputs = Tensor | Mapping[int, Tensor]

# Class labels (N), label sets (N, C) of 0 and 1, masks (N, H, W) of class numbers: each has this where nothing is known.
MISSING_LABEL = -1


def has_label(labels: Tensor) -> Tensor:
    """Which samples (N) of these labels are labelled at all; a mask is where any of its pixels is."""
    return (labels.flatten(1) != MISSING_LABEL).any(dim=1) if labels.ndim > 1 else labels != MISSING_LABEL
