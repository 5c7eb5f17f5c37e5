"""Thumbnails, by which the copy of a picture is found among many: whole ones are compared with windows of others.

A copy may be cut, so 49 windows of 80 % and more of a thumbnail are compared with the whole of each other one, and the other
way round. Thumbnails only name whom to look at: `heads.data.near_duplicates.likeness` decides.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heads.data.near_duplicates.windows import details_in, grid_of, windows_of

SIDE_PX = 32
# Measured on four real sets: at 12 px, with a local mean of 3 x 3, the original is among the three nearest of every altered copy
# (sign_digits, hymenoptera, pets3, camvid); with 19 windows instead of 49 up to 74 others are nearer to a cut copy.
_DETAIL_PX, _REACH_PX = 12, 1
_SIDES, _PLACES = (0.93, 0.86, 0.8), 4


def thumbnail_of(image: Image.Image) -> Tensor:
    """An image reduced to greys (32, 32) from 0 to 255, as float16."""
    resample = Image.Resampling.BOX if min(image.size) >= SIDE_PX else Image.Resampling.BILINEAR
    return torch.from_numpy(np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), resample)).astype(np.float16))


def windows_in(thumbnails: Tensor) -> Tensor:
    """The details (n, w, p) of the windows of thumbnails (n, 32, 32), of which the first is the whole; 28 kB a thumbnail."""
    size = len(thumbnails), -1, -1, -1
    return torch.stack([details_in(thumbnails, window[None].expand(size), _REACH_PX) for window in _grid()], dim=1)


def alikeness(some: Tensor, others: Tensor) -> Tensor:
    """How well a window of one fits the whole of the other (n, m), -1 to 1, of thumbnails given by their windows."""
    best = some[:, 0] @ others[:, 0].T
    for number in range(1, some.shape[1]):
        torch.maximum(best, some[:, number] @ others[:, 0].T, out=best)
        torch.maximum(best, some[:, 0] @ others[:, number].T, out=best)
    return best


@cache
def _grid() -> Tensor:
    return grid_of(windows_of(_SIDES, _PLACES), _DETAIL_PX)
