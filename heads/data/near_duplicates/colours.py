"""Whether two pictures that are alike in their greys have the same colours, too: a red and a green square are not one picture.

What a picture is put through may change its brightness, contrast and saturation, or take its colours away, and the copy is still
the same picture. So contrasts may differ by a factor, and so may all colours together; a hue may not.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heads.data.near_duplicates.windows import WHOLE, Window, grid_of, pixels_in

# Measured on pairs that are the same by their greys. All of 2,961 altered copies of 100 photographs (pets3, hymenoptera,
# sign_digits, camvid: resized, cut, JPEG and WebP down to quality 30, 64 colours, grey, brightness 0.6 to 1.25, contrast 0.6 to
# 1.5, gamma 0.7 to 1.4) have the same colours by these bounds, and all but five of 1,017 of 41 icons of 64 px. So have 42 of 431
# pairs of icons that differ, most of them in colour alone, and 8 of 149 photographs (pets3, hymenoptera, sign_digits) whose hues
# were turned by 90 degrees or whose red and blue were exchanged: nearly grey ones.
_RASTER_PX, _SIDE_PX = 24, 12
# By these factors the contrast may differ, and the strength of all colours together.
_MOST_CONTRAST, _LEAST_SATURATION = 1.8, 0.5
# What is then left between the colours, of 255: on the whole, as a share of the paler picture's own, and in any one place.
_MOST_APART, _MOST_APART_SHARE, _MOST_APART_ANYWHERE = 12.0, 0.3, 60.0
# A picture with no colour stronger than this is grey, and may be a grey copy.
_GREY = 5.0
_LUMA = (0.299, 0.587, 0.114)


def colours_of(image: Image.Image) -> Tensor:
    """The colours (3, 24, 24) of an RGB image of at least 24 px a side, from 0 to 255."""
    pixels = np.asarray(image.resize((_RASTER_PX, _RASTER_PX), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def have_same_colours(part: Tensor, window: Window, whole: Tensor) -> bool:
    """Whether a window of one picture has the colours of the whole other one, but for brightness, contrast and saturation."""
    (grey, hues), (other_grey, other_hues) = _parted(part, window), _parted(whole, WHOLE)
    low, high = sorted((float(grey.std()), float(other_grey.std())))
    if high > _MOST_CONTRAST * low:
        return False
    if min(_strengths(hues).max(), _strengths(other_hues).max()) < _GREY:
        return True
    weak, strong = sorted((hues, other_hues), key=lambda each: float(each.square().sum()))
    saturation = float((weak * strong).sum() / strong.square().sum())
    apart = _strengths(weak - min(1.0, max(_LEAST_SATURATION, saturation)) * strong)
    allowed = max(_MOST_APART, _MOST_APART_SHARE * _root_mean_square(_strengths(weak)))
    return _root_mean_square(apart) <= allowed and float(apart.max()) <= _MOST_APART_ANYWHERE


def _parted(colours: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The greys (12, 12) of a window, and how far red and blue are from them (2, 12, 12)."""
    pixels = pixels_in(colours[None], grid_of([window], _SIDE_PX))[0]
    grey = torch.einsum("c,chw->hw", pixels.new_tensor(_LUMA), pixels)
    return grey, pixels[::2] - grey


def _strengths(hues: Tensor) -> Tensor:
    return hues.square().sum(dim=0).sqrt()


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
