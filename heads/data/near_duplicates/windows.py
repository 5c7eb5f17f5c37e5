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
    num_points = 2 * side_px
    points = (2 * torch.arange(num_points, dtype=torch.float32) + 1) / num_points - 1
    left, top, side = torch.tensor(windows, dtype=torch.float32)[..., None].unbind(dim=1)
    across, down = (side * points + 2 * edge + side - 1 for edge in (left, top))
    shape = len(windows), num_points, num_points
    return torch.stack([across[:, None, :].expand(shape), down[:, :, None].expand(shape)], dim=-1)


def pixels_in(rasters: Tensor, grid: Tensor) -> Tensor:
    """The pixels (n, c, h, w) of rasters (n, c, R, R), each at its points of the grid (n)."""
    # By sums of shifted views: on a CPU torch's own pooling takes six to nine times as long.
    return _halved(F.grid_sample(rasters, grid, padding_mode="border", align_corners=False))


def details_in(rasters: Tensor, grid: Tensor, reach: int) -> Tensor:
    """The details (n, p) of rasters (n, R, R), each at its points of the grid (n), brought to mean 0 and length 1.

    The local mean that is taken away is of `reach` pixels to each side.
    """
    grey = pixels_in(rasters[:, None], grid)
    detail = (grey - _local_mean(grey, reach)).flatten(1)
    return F.normalize(detail - detail.mean(dim=1, keepdim=True), dim=1, eps=1e-3)


def _halved(grey: Tensor) -> Tensor:
    rows = grey[..., ::2, :] + grey[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]).div_(4)


def _local_mean(grey: Tensor, reach: int) -> Tensor:
    (height, width), length = grey.shape[-2:], 2 * reach + 1
    padded = F.pad(grey, (reach,) * 4, mode="replicate")
    rows = padded[..., :height, :].clone()
    for step in range(1, length):
        rows += padded[..., step : step + height, :]
    squares = rows[..., :width].clone()
    for step in range(1, length):
        squares += rows[..., step : step + width]
    return squares.div_(length**2)
