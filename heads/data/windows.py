"""What is seen of pictures through windows: grey less its local mean, so that light and shade count for little."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The left and upper edge and the side of a window, as shares of the image's sides.
Window = tuple[float, float, float]
WHOLE: Window = (0.0, 0.0, 1.0)


def windows_of(sides: Sequence[float], places: int) -> tuple[Window, ...]:
    """The whole, then windows of these sides, each at so many places across and down."""
    at = {side: [float(edge) for edge in np.linspace(0, 1 - side, places)] for side in sides}
    return (WHOLE, *((left, top, side) for side in sides for top, left in product(at[side], at[side])))


def grid_of(windows: Sequence[Window], side_px: int) -> Tensor:
    """Where to read a raster for windows (w), two points a pixel on each axis, as `grid_sample` takes it."""
    turns = torch.tensor(
        [[[side, 0, 2 * left + side - 1], [0, side, 2 * top + side - 1]] for left, top, side in windows], dtype=torch.float32
    )
    return F.affine_grid(turns, [len(windows), 1, 2 * side_px, 2 * side_px], align_corners=False)


def details_in(rasters: Tensor, grid: Tensor, reach: int) -> Tensor:
    """The details (n, p) of rasters (n, R, R), each at its points of the grid (n), brought to mean 0 and length 1.

    The local mean that is taken away is of `reach` pixels to each side.
    """
    grey = F.avg_pool2d(F.grid_sample(rasters[:, None], grid, padding_mode="border", align_corners=False), 2)
    detail = (grey - F.avg_pool2d(F.pad(grey, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)).flatten(1)
    return F.normalize(detail - detail.mean(dim=1, keepdim=True), dim=1, eps=1e-3)
