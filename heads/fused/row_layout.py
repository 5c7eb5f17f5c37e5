"""The weights of many heads of one shape as one matrix, a row a training: what is done to it costs one call for all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Rows begin at a multiple of so many values: products are faster on what begins at a multiple of 16 bytes.
ROW_STEP = 16


class RowLayout:
    """Where each of a head's weights lies in a row: one after another, then zeros that fill the row up."""

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self._shapes = tuple(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        self._sizes = [*sizes, -sum(sizes) % ROW_STEP]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Each weight's stack (V, ...) as a view of the rows (V, P); with gradients, by one call."""
        parts = rows.split_with_sizes(self._sizes, dim=1)
        return [part.view(len(rows), *shape) for part, shape in zip(parts, self._shapes, strict=False)]

    def gather(self, weights: Sequence[Sequence[Tensor]]) -> Tensor:
        """New rows (V, P) that hold these weights, by training and then in the columns' order."""
        rows = weights[0][0].new_zeros(len(weights), sum(self._sizes))
        for stacked, same in zip(self.split(rows), zip(*weights, strict=True), strict=True):
            stacked.copy_(torch.stack([weight.detach() for weight in same]))
        return rows

    def width(self, num_weights: int) -> int:
        """How many columns the first `num_weights` weights take."""
        return sum(self._sizes[:num_weights])
