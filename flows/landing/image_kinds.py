"""Images at a glance: flat, as masks are, or photographs. A few images of a folder stand for all of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from heads.data.decoding import formats

_NUM_LOOKED_AT = 8
_SIDE_PX = 256
_MAX_PIXELS = 50_000_000
_FEW = 32
_TOP = 8
# In a colour image with fewer pixels, few colours say nothing.
_MIN_PIXELS = 1024


@dataclass(frozen=True)
class Glance:
    """An image's number of different values, the share of pixels with the eight most frequent ones, and its size."""

    num_values: int
    top_share: float
    num_pixels: int
    is_grey: bool

    @property
    def is_flat(self) -> bool:
        """Whether a few values make up nearly all of it, as in a mask, even one saved in a lossy format."""
        few = self.num_values <= _FEW or self.top_share > 0.9
        return few and 8 * min(self.num_values, _FEW) <= self.num_pixels and (self.is_grey or self.num_pixels >= _MIN_PIXELS)

    @property
    def is_mask(self) -> bool:
        """Whether it is flat and without colour, as hardly anything but a mask is."""
        return self.is_flat and self.is_grey

    @property
    def is_photograph(self) -> bool:
        """Whether its pixels have many values, and no few of them prevail."""
        return self.num_values > _FEW and self.top_share < 0.5


def are_mostly(files: Sequence[Path], kind: Callable[[Glance], bool]) -> bool:
    """Whether four fifths of a few of these images are of a kind; those that do not decode or have one value do not count."""
    step = max(1, len(files) // _NUM_LOOKED_AT)
    glances = [seen for file in files[::step][:_NUM_LOOKED_AT] if (seen := glance(file)) and seen.num_values > 1]
    return bool(glances) and 5 * sum(map(kind, glances)) >= 4 * len(glances)


def glance(file: Path) -> Glance | None:
    """A glance at an image; None if it cannot be read."""
    try:
        if not file.is_file():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats()) as image:
                return _glance(image) if image.width * image.height <= _MAX_PIXELS else None
    # A damaged file makes decoders raise nearly anything; ingest reads it again later, and says what is wrong with it.
    except Exception:
        return None


def _glance(image: Image.Image) -> Glance:
    side = (min(image.width, _SIDE_PX), min(image.height, _SIDE_PX))
    # The indices of a palette are a mask's values; nearest neighbour invents no values in between.
    plain = image if len(image.getbands()) == 1 else image.convert("RGB")
    pixels = np.asarray(plain.resize(side, Image.Resampling.NEAREST)).reshape(side[0] * side[1], -1)
    is_grey = pixels.shape[1] == 1 or bool((pixels == pixels[:, :1]).all())
    values = pixels[:, 0] if is_grey else pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    counts = np.sort(np.unique(values, return_counts=True)[1])[::-1]
    return Glance(len(counts), float(counts[:_TOP].sum() / counts.sum()), len(pixels), is_grey)
