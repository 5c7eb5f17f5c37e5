"""From images to network inputs: the preprocessing that training and consumers share, and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads.backbones.image_table import IMAGE_ROWS
from heads.data.augmentation import (
    STRENGTHS,
    Geometry,
    Strength,
    Variation,
    apply_geometry,
    draw_mirrored,
    draw_variation,
    erase,
    recolour,
)
from heads.data.decoding import decode
from heads.data.image_preprocess import ImagePreprocess, Length, frame_of, normalise, resized_size
from heads.data.pixels import pixels_of
from heads.spec import Augment

__all__ = [
    "ImagePreprocess",
    "build_draw",
    "crop_centre",
    "decode",
    "frame_of",
    "normalise",
    "pixels_of",
    "prepare",
    "prepare_pixels",
    "preprocess_for",
    "resize",
    "resize_mask",
    "resized_size",
    "vary",
    "vary_mask",
]

# Up to this size images are digits, icons and thumbnails that fill their frame: cropping the usual eighth would cut strokes.
MAX_TIGHT_SIZE_PX = 64

# An image's variation from the height and width that it is resized to.
Draw = Callable[[int, int, np.random.Generator], Variation]


def preprocess_for(backbone: str, image_size_px: int, *, whole: bool = False) -> ImagePreprocess:
    """The preprocessing a backbone's ImageNet weights were trained for, brought to another image size in px.

    `whole` images, for masks, keep their rims and lose their aspect.
    """
    source = IMAGE_ROWS[backbone].source
    assert source, "a backbone of images has published weights"
    seen = source.images
    scaled = round(image_size_px * seen.resize_px / seen.image_size_px)
    resize_px = image_size_px if whole or image_size_px <= MAX_TIGHT_SIZE_PX else scaled
    return ImagePreprocess(image_size_px, resize_px, seen.mean, seen.std, IMAGE_ROWS[backbone].interpolation, whole)


def resize(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """Pixels (N, 3, H, W) with the shorter side (if `whole`, both) brought to `resize_px`, as float whole numbers up to 255.

    In float on purpose: the same numbers then come from every processor, an exported program included, where uint8
    arithmetic differs from one to the next (and does not exist on GPUs). Traceable by torch.export for any H and W.
    """
    kept, size = _frame(pixels, preprocess)
    pixels = _cut_middle(pixels, *kept) * 1.0
    # Neither `to` nor `contiguous`: an exported program would be tied to a device, or to the aspect of its example.
    pixels = pixels.clone(memory_format=torch.contiguous_format)
    resized = F.interpolate(pixels, size=size, mode=preprocess.interpolation, antialias=True)  # type: ignore[arg-type]
    # Bicubic overshoots at edges, bilinear never leaves the range.
    return (resized.clamp(0, 255) if preprocess.interpolation == "bicubic" else resized).round()


def resize_mask(numbers: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """Whole numbers (N, 1, H, W) resized as `resize` does their image, by nearest neighbour."""
    kept, size = _frame(numbers, preprocess)
    # In double, which holds every one of them; the centre of a pixel falls where the image's does.
    resized = F.interpolate(_cut_middle(numbers, *kept).double(), size=size, mode="nearest-exact")  # type: ignore[arg-type]
    return resized.to(numbers.dtype)


def _frame(pixels: Tensor, preprocess: ImagePreprocess) -> tuple[tuple[Length, Length], tuple[Length, Length]]:
    return frame_of(pixels.shape[-2], pixels.shape[-1], preprocess)


def crop_centre(resized: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """The middle square of `image_size_px`."""
    return _cut_middle(resized, preprocess.image_size_px, preprocess.image_size_px)


def _cut_middle(pixels: Tensor, kept_height: Length, kept_width: Length) -> Tensor:
    height, width = pixels.shape[-2], pixels.shape[-1]
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    # By negative padding, since torch.export would tie a program with a slice to images that need the cut, or need none.
    return F.pad(pixels, (-left, left + kept_width - width, -top, top + kept_height - height))  # type: ignore[arg-type]


def prepare(image: Image.Image, preprocess: ImagePreprocess) -> Tensor:
    """An RGB image as a network input (3, S, S): the one way of evaluation and prediction."""
    return prepare_pixels(pixels_of(image), preprocess)


def prepare_pixels(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """The same of pixels (1, 3, H, W) in uint8."""
    return normalise(crop_centre(resize(pixels, preprocess), preprocess), preprocess)[0]


def build_draw(preprocess: ImagePreprocess, augment: Augment, flip: bool = False) -> Draw:
    """The function that draws how an image is varied; with `none` it is what evaluation sees.

    `light` moves the window of evaluation by up to 10 % of its side, scales it by 0.85 to 1.15, stretches it by 8 % and
    recolours it slightly (15 %). `medium` does more of it (15 %, 0.75 to 1.25, 15 %, 30 %) and turns it by up to 10 degrees.
    `strong` does most (20 %, 0.6 to 1.4, 25 %, 50 %, 20 degrees) and covers up to a quarter of every second window with
    noise. `flip` mirrors every second one, left for right, also with `none`.
    """
    strength, size = STRENGTHS.get(augment), preprocess.image_size_px
    return partial(_draw_varied, size, strength, flip) if strength else partial(_draw_plain, size, flip)


def _draw_plain(size: int, flip: bool, height: int, width: int, random: np.random.Generator) -> Variation:
    return Variation(Geometry((height - size) // 2, size, (width - size) // 2, size, mirrored=draw_mirrored(flip, random)))


def _draw_varied(size: int, strength: Strength, flip: bool, height: int, width: int, random: np.random.Generator) -> Variation:
    return draw_variation(height, width, size, strength, flip, random)


def vary(resized: Tensor, variation: Variation, preprocess: ImagePreprocess) -> Tensor:
    """Resized pixels (1, 3, H, W) as a network input (3, S, S), varied; without factors of colour as evaluation sees them."""
    if variation.colour is None:
        image = normalise(crop_centre(resized, preprocess), preprocess)[0]
        return image.flip(-1) if variation.geometry.mirrored else image
    window = apply_geometry(resized, variation.geometry, preprocess.image_size_px, "bilinear")
    pixels = recolour(window.float(), torch.tensor([variation.colour]))
    if variation.erased:
        erase(pixels[0], variation.erased)
    return normalise(pixels, preprocess)[0]


def vary_mask(resized: Tensor, variation: Variation, preprocess: ImagePreprocess) -> Tensor:
    """Class numbers (1, 1, H, W) of a resized mask as (S, S) in int64, varied as their image, by nearest neighbour."""
    if variation.colour is None:
        mask = crop_centre(resized, preprocess)[0, 0].long()
        return mask.flip(-1) if variation.geometry.mirrored else mask
    # By way of floats, which nearest neighbour passes on as they are.
    return apply_geometry(resized.float(), variation.geometry, preprocess.image_size_px, "nearest")[0, 0].long()
