"""How images are prepared, as values: to what size, what is cut off, how pixels become a network's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, get_args

import torch
from torch import Tensor

from heads.catalogue import Interpolation

# How many shorter sides of the longer one are kept: a centre crop reads less, and a strip of 1 x 30000 px would fill memory.
MAX_ASPECT = 2
FULL_SIDE_PX = 224
# Twice the largest size that a variant may ask for.
MAX_RESIZE_PX = 2048
FIRST_CHOICES = (("interpolation", "bilinear"), ("whole", False))
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

Length = int | torch.SymInt


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


def frame_of(height: Length, width: Length, preprocess: ImagePreprocess) -> tuple[tuple[Length, Length], tuple[Length, Length]]:
    """The height and width in the middle of an image that are kept, and those that they are resized to."""
    side = preprocess.resize_px
    if preprocess.whole:
        return (height, width), (side, side)
    # Of plain numbers, that of Python is twenty times as fast.
    smaller = min if isinstance(height, int) and isinstance(width, int) else torch.sym_min
    shorter = smaller(height, width)
    kept_height, kept_width = smaller(height, MAX_ASPECT * shorter), smaller(width, MAX_ASPECT * shorter)
    return (kept_height, kept_width), (side * kept_height // shorter, side * kept_width // shorter)


def resized_size(height: int, width: int, preprocess: ImagePreprocess) -> tuple[int, int]:
    """The height and width to which an image is resized."""
    resized_height, resized_width = frame_of(height, width, preprocess)[1]
    return int(resized_height), int(resized_width)


def normalise(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """Pixels (N, 3, H, W) of 0 to 255 as the float values a network takes."""
    # By channel and plain numbers: a constant tensor would tie an exported program to the device it was made on.
    channels = zip((pixels * 1.0).unbind(dim=-3), _scales(preprocess), strict=True)
    return torch.stack([(channel - mean) / std for channel, (mean, std) in channels], dim=-3)


def normalise_in_place(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """The same values, written over those of float pixels."""
    for channel, (mean, std) in zip(pixels.unbind(dim=-3), _scales(preprocess), strict=True):
        channel.sub_(mean).div_(std)
    return pixels


def _scales(preprocess: ImagePreprocess) -> list[tuple[float, float]]:
    """Each channel's mean and standard deviation, of pixels of 0 to 255."""
    return [(255 * mean, 255 * std) for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
