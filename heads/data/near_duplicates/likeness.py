"""How alike two images are in their details: high for the same picture at another size, quality or crop, low for look-alikes.

Both are reduced to grey squares of few pixels, and what is left of them after a local mean is taken away is correlated. One may
show a part of the other: windows of 80 % and more of each side are tried, first coarsely, then about the best one. Pairs that are
the same picture by that get a last look at their colours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heads.data.decoding import opened
from heads.data.near_duplicates.colours import colours_of, have_same_colours
from heads.data.near_duplicates.windows import WHOLE, Window, details_in, grid_of, windows_of

# From here on two images are the same picture: look-alikes of five real sets reach 0.78, but for two signs of one hand (0.851);
# pictures at half their size, in a JPEG of quality 30 or cut to 85 % stay above 0.88, but for one of 300 (0.850).
# A property of the measure, not of a set: 1 are equal details, 0 unrelated ones.
SAME_PICTURE = 0.87
# Smaller images have too few details to be told apart.
MIN_SIDE_PX = 32
_RASTER_PX, _COARSE_PX, _FINE_PX, _REACH_PX = 144, 24, 48, 2
_SCALES, _PLACES = (0.95, 0.9, 0.85, 0.8), 5
# Below this coarse likeness no window can reach SAME_PICTURE: the least of the altered pictures above is 0.84.
_LEAST_COARSE = 0.6
_STEPS = (0.025, 0.0125, 0.006)


@dataclass(frozen=True, eq=False)
class Details:
    """An image reduced to what it is compared by: greys, a few colours, and the details of its windows (w, p), coarsely."""

    raster: Tensor = field(repr=False)
    colours: Tensor = field(repr=False)
    windows: Tensor = field(repr=False)


def is_comparable(source: Path | bytes) -> bool:
    """Whether the image in a file has enough pixels to be compared; reads no more than its header. Raises ImageError."""
    with opened(source, None) as image:
        return min(image.size) >= MIN_SIDE_PX


def details_of(image: Image.Image) -> Details | None:
    """What an image is compared by; None if one of its sides has fewer than MIN_SIDE_PX pixels."""
    if min(image.size) < MIN_SIDE_PX:
        return None
    resample = Image.Resampling.BOX if min(image.size) >= _RASTER_PX else Image.Resampling.BILINEAR
    grey = np.asarray(image.convert("L").resize((_RASTER_PX, _RASTER_PX), resample), dtype=np.float32)
    raster = torch.from_numpy(grey.copy())
    return Details(raster, colours_of(image), _read(raster, _coarse_grid()))


def likeness(one: Details, other: Details) -> float:
    """The correlation of two images' details, -1 to 1, in the window of one that fits the whole of the other best.

    0 if they would be the same picture by that, and their colours are others.
    """
    parts = one.windows @ other.windows[0], other.windows @ one.windows[0]
    part, whole, found = (one, other, parts[0]) if parts[0].max() >= parts[1].max() else (other, one, parts[1])
    coarse, place = found.max(dim=0)
    if coarse < _LEAST_COARSE:
        return float(coarse)
    best, window = _refined(part.raster, _read(whole.raster, grid_of([WHOLE], _FINE_PX))[0], _windows()[int(place)])
    return best if best < SAME_PICTURE or have_same_colours(part.colours, window, whole.colours) else 0.0


def _refined(raster: Tensor, wanted: Tensor, window: Window) -> tuple[float, Window]:
    """The best correlation of windows near this one with the wanted details, at the finer size, and that window."""
    best = -1.0
    for step in _STEPS:
        near = [_moved(window, *move) for move in product((-step, 0.0, step), repeat=3)]
        found, place = (_read(raster, grid_of(near, _FINE_PX)) @ wanted).max(dim=0)
        if found > best:
            best, window = float(found), near[int(place)]
    return best, window


def _moved(window: Window, grows: float, right: float, down: float) -> Window:
    side = min(1.0, window[2] + grows)
    left, top = (min(max(0.0, edge + move - grows / 2), 1 - side) for edge, move in zip(window, (right, down), strict=False))
    return left, top, side


@cache
def _windows() -> tuple[Window, ...]:
    return windows_of(_SCALES, _PLACES)


@cache
def _coarse_grid() -> Tensor:
    return grid_of(_windows(), _COARSE_PX)


def _read(raster: Tensor, grid: Tensor) -> Tensor:
    """The details (w, p) of a raster in each window of the grid (w)."""
    return details_in(raster.expand(len(grid), *raster.shape), grid, _REACH_PX)
