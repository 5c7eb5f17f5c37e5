"""Labels as tensors: one shape for each task, one number for what is missing."""

from __future__ import annotations

from torch import Tensor

# Class labels (N), label sets (N, C) of 0 and 1, masks (N, H, W) and tags (N, W) of class numbers: each has this if nothing is
# known. Tags of words that a model does not read are below it, as `heads.data.tags` marks them.
MISSING_LABEL = -1


def has_label(labels: Tensor) -> Tensor:
    """Which samples (N) have a label; a mask counts as one if any of its pixels is labelled."""
    return (labels.flatten(1) != MISSING_LABEL).any(dim=1) if labels.ndim > 1 else labels != MISSING_LABEL
