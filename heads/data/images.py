"""From images to network inputs: the preprocessing that training and consumers share, and augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads.backbones.table import BACKBONES, Interpolation
from heads.data.augmentation import STRENGTHS, Strength, apply_geometry, draw_geometry, draw_mirrored, recolour
from heads.data.decoding import decode
from heads.data.pixels import pixels_of
from heads.spec import Augment

__all__ = [
    "ImagePreprocess",
    "build_transform",
    "crop_centre",
    "decode",
    "normalise",
    "pixels_of",
    "prepare",
    "preprocess_for",
    "resize",
    "resize_mask",
]

# How many shorter sides of the longer one are kept: a centre crop reads less, and a strip of 1 x 30000 px would fill memory.
MAX_ASPECT = 2
# Up to this size images are digits, icons and thumbnails that fill their frame: cropping the usual eighth would cut strokes.
MAX_TIGHT_SIZE_PX = 64
FULL_SIDE_PX = 224
# Twice the largest size that a variant may ask for.
MAX_RESIZE_PX = 2048
FIRST_CHOICES = (("interpolation", "bilinear"), ("whole", False))
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

Length = int | torch.SymInt
Transform = Callable[[Tensor, Sequence[Tensor], np.random.Generator], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class ImagePreprocess:
    """Shorter side to `resize_px` (antialiased), centre crop of `image_size_px`, then (x / 255 - mean) / std.

    With `whole` nothing is cut off: both sides are brought to `image_size_px`, which `resize_px` then equals.
    """

    image_size_px: int
    resize_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    whole: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.image_size_px <= self.resize_px:
            raise ValueError(f"image_size_px {self.image_size_px} must be from 1 to resize_px {self.resize_px}")
        if self.resize_px > MAX_RESIZE_PX:
            raise ValueError(f"resize_px {self.resize_px} is too large; allowed: up to {MAX_RESIZE_PX}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three finite numbers each, std above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is unknown; allowed: {', '.join(INTERPOLATIONS)}")

    def describe(self) -> str:
        """What is done to an image, in a card's words."""
        square = f"{self.image_size_px} x {self.image_size_px} px"
        cut = f"the shorter side to {self.resize_px} px, then the middle {square}"
        return f"the whole image brought to {square}" if self.whole else cut

    def summary(self) -> dict[str, Any]:
        """The side in pixels, and whether images are seen whole."""
        return {"image_size_px": self.image_size_px, "whole": self.whole}

    def batch_size(self, most: int) -> int:
        """How many images a trunk is run on at once: with as many pixels as `most` images of 224 px, and at most `most`."""
        return max(1, min(most, most * FULL_SIDE_PX**2 // self.image_size_px**2))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back."""
        fields = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        # Fields at their first choice are left out, as in bundles written before there was a choice.
        return {key: value for key, value in fields.items() if (key, value) not in FIRST_CHOICES}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ImagePreprocess:
        """The preprocessing that `to_json` wrote. Raises KeyError, TypeError, OverflowError or ValueError on anything else."""
        mean, std = (tuple(float(x) for x in value[key]) for key in ("mean", "std"))
        interpolation = value.get("interpolation", "bilinear")
        sizes = int(value["image_size_px"]), int(value["resize_px"])
        return cls(*sizes, mean, std, interpolation, bool(value.get("whole", False)))  # type: ignore[arg-type]


def preprocess_for(backbone: str, image_size_px: int, *, whole: bool = False) -> ImagePreprocess:
    """The preprocessing a backbone's ImageNet weights were trained for, brought to another image size in px.

    `whole` images, for masks, keep their rims and lose their aspect.
    """
    source = BACKBONES[backbone].source
    assert source, "a backbone of images has published weights"
    seen = source.images
    scaled = round(image_size_px * seen.resize_px / seen.image_size_px)
    resize_px = image_size_px if whole or image_size_px <= MAX_TIGHT_SIZE_PX else scaled
    return ImagePreprocess(image_size_px, resize_px, seen.mean, seen.std, BACKBONES[backbone].interpolation, whole)


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
    """The height and width of (N, C, H, W) that are kept, and those that they are resized to."""
    height, width, side = pixels.shape[-2], pixels.shape[-1], preprocess.resize_px
    if preprocess.whole:
        return (height, width), (side, side)
    shorter = torch.sym_min(height, width)
    kept_height, kept_width = torch.sym_min(height, MAX_ASPECT * shorter), torch.sym_min(width, MAX_ASPECT * shorter)
    return (kept_height, kept_width), (side * kept_height // shorter, side * kept_width // shorter)


def crop_centre(resized: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """The middle square of `image_size_px`."""
    return _cut_middle(resized, preprocess.image_size_px, preprocess.image_size_px)


def _cut_middle(pixels: Tensor, kept_height: Length, kept_width: Length) -> Tensor:
    height, width = pixels.shape[-2], pixels.shape[-1]
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    # By negative padding, since torch.export would tie a program with a slice to images that need the cut, or need none.
    return F.pad(pixels, (-left, left + kept_width - width, -top, top + kept_height - height))  # type: ignore[arg-type]


def normalise(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """Pixels (N, 3, H, W) of 0 to 255 as the float values a network takes."""
    # By channel and plain numbers: a constant tensor would tie an exported program to the device it was made on.
    channels = zip((pixels * 1.0).unbind(dim=-3), preprocess.mean, preprocess.std, strict=True)
    return torch.stack([(channel - 255 * mean) / (255 * std) for channel, mean, std in channels], dim=-3)


def prepare(image: Image.Image, preprocess: ImagePreprocess) -> Tensor:
    """An RGB image as a network input (3, S, S): the one way of evaluation and prediction."""
    return normalise(crop_centre(resize(pixels_of(image), preprocess), preprocess), preprocess)[0]


def build_transform(preprocess: ImagePreprocess, augment: Augment, flip: bool = False) -> Transform:
    """The function from resized pixels (1, 3, H, W) to a network input (3, S, S); `none` is what evaluation does.

    It takes class numbers (1, 1, H, W) of masks the same way, to (S, S) in int64, by nearest neighbour.

    `light` moves the window of evaluation by up to 10 % of its side, scales it by 0.85 to 1.15, stretches it by 8 % and
    recolours it slightly (15 %). `medium` does more of it (15 %, 0.75 to 1.25, 15 %, 30 %) and turns it by up to 10 degrees.
    `strong` does most (20 %, 0.6 to 1.4, 25 %, 50 %, 20 degrees) and covers up to a quarter of every second window with
    noise. `flip` mirrors every second one, left for right, also with `none`.
    """
    strength = STRENGTHS.get(augment)
    return partial(_plain, preprocess, flip) if strength is None else partial(_vary, preprocess, strength, flip)


def _plain(
    preprocess: ImagePreprocess, flip: bool, resized: Tensor, masks: Sequence[Tensor], random: np.random.Generator
) -> tuple[Tensor, list[Tensor]]:
    image = normalise(crop_centre(resized, preprocess), preprocess)[0]
    cut = [crop_centre(mask, preprocess)[0, 0].long() for mask in masks]
    return (image.flip(-1), [mask.flip(-1) for mask in cut]) if draw_mirrored(flip, random) else (image, cut)


def _vary(
    preprocess: ImagePreprocess,
    strength: Strength,
    flip: bool,
    resized: Tensor,
    masks: Sequence[Tensor],
    random: np.random.Generator,
) -> tuple[Tensor, list[Tensor]]:
    height, width, size = resized.shape[-2], resized.shape[-1], preprocess.image_size_px
    geometry = draw_geometry(height, width, size, strength, flip, random)
    window = apply_geometry(resized, geometry, size, "bilinear")
    # Masks by way of floats, which nearest neighbour passes on as they are.
    seen = [apply_geometry(mask.float(), geometry, size, "nearest")[0, 0].long() for mask in masks]
    return normalise(recolour(window.float(), strength, random), preprocess)[0], seen
