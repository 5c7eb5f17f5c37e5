"""How training images are varied: by geometry, which masks share, and by colour, which is the image's alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from heads.spec import Augment

Sampling = Literal["bilinear", "nearest"]


@dataclass(frozen=True)
class Strength:
    """How far images are varied, in each way by at most plus or minus its number.

    `scale`, `stretch` and `shift` are shares of the window's side, `degrees` turn it, `colour` is a share of brightness,
    contrast and saturation. `erased` is the largest share of the window that grey noise covers, in half of the images
    (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020).
    """

    scale: float
    shift: float
    stretch: float
    colour: float
    degrees: float = 0.0
    erased: float = 0.0


# None of them mirrors: a mirrored digit, letter, hand sign or left/right organ is another class or none, and Headstart
# cannot know; `fit.flip` says that it may.
STRENGTHS: Mapping[Augment, Strength] = {
    "light": Strength(scale=0.15, shift=0.1, stretch=0.08, colour=0.15),
    "medium": Strength(scale=0.25, shift=0.15, stretch=0.15, colour=0.3, degrees=10.0),
    "strong": Strength(scale=0.4, shift=0.2, stretch=0.25, colour=0.5, degrees=20.0, erased=0.25),
}
ERASED_SHARE_OF_IMAGES = 0.5
MIN_ERASED = 0.02
MIRRORED_SHARE_OF_IMAGES = 0.5


@dataclass(frozen=True)
class Geometry:
    """Which window of an image the network sees: it is turned about its middle, cut to rows and columns, then mirrored."""

    top: int
    num_rows: int
    left: int
    num_columns: int
    degrees: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Erased:
    """What covers a part of the window: grey noise (3, h, w) in uint8, and where its upper left corner lies."""

    top: int
    left: int
    noise: NDArray[np.uint8]

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the window that it covers."""
        return slice(self.top, self.top + self.noise.shape[1]), slice(self.left, self.left + self.noise.shape[2])


@dataclass(frozen=True)
class Variation:
    """All that is drawn at random for an image: its window, factors of brightness, contrast and saturation, what is erased.

    Without factors the window is the middle square, as evaluation sees it, mirrored or not.
    """

    geometry: Geometry
    colour: tuple[float, float, float] | None = None
    erased: Erased | None = None


def draw_variation(height: int, width: int, size: int, strength: Strength, flip: bool, random: np.random.Generator) -> Variation:
    """The variation of an image of `height` and `width`, within the strength, to a window of `size` px."""
    geometry = draw_geometry(height, width, size, strength, flip, random)
    brightness, contrast, saturation = (float(x) for x in random.uniform(1 - strength.colour, 1 + strength.colour, size=3))
    erases = strength.erased and random.uniform() < ERASED_SHARE_OF_IMAGES
    erased = _draw_erased(size, random.uniform(MIN_ERASED, strength.erased), random) if erases else None
    return Variation(geometry, (brightness, contrast, saturation), erased)


def _draw_erased(size: int, share: float, random: np.random.Generator) -> Erased:
    aspect = math.exp(random.uniform(-1, 1))
    height, width = (min(size, max(1, round(size * math.sqrt(share * ratio)))) for ratio in (aspect, 1 / aspect))
    top, left = int(random.integers(size - height + 1)), int(random.integers(size - width + 1))
    return Erased(top, left, random.integers(0, 256, (1, 3, height, width))[0].astype(np.uint8))


def draw_geometry(height: int, width: int, size: int, strength: Strength, flip: bool, random: np.random.Generator) -> Geometry:
    """The middle square of `size` px, which evaluation sees, moved, scaled, stretched and turned within the strength."""
    scale = random.uniform(1 - strength.scale, 1 + strength.scale)
    stretch = random.uniform(-strength.stretch, strength.stretch)
    top, num_rows = _draw_span(height, round(size * scale * (1 - stretch / 2)), size, strength.shift, random)
    left, num_columns = _draw_span(width, round(size * scale * (1 + stretch / 2)), size, strength.shift, random)
    degrees = float(random.uniform(-strength.degrees, strength.degrees)) if strength.degrees else 0.0
    return Geometry(top, num_rows, left, num_columns, degrees, draw_mirrored(flip, random))


def _draw_span(length: int, side: int, size: int, shift: float, random: np.random.Generator) -> tuple[int, int]:
    return round((length - side) / 2 + size * random.uniform(-shift, shift)), side


def draw_mirrored(flip: bool, random: np.random.Generator) -> bool:
    """Whether an image is mirrored, left for right: one in two, if `flip` allows it."""
    return flip and random.uniform() < MIRRORED_SHARE_OF_IMAGES


def apply_geometry(pixels: Tensor, geometry: Geometry, size: int, sampling: Sampling) -> Tensor:
    """The window of (1, C, H, W) as (1, C, size, size); beyond the image the edge is repeated.

    The same geometry on an image (bilinear) and on its mask (nearest, so that values stay as they are) shows the same place.
    """
    if geometry.degrees:
        pixels = turn(pixels, geometry.degrees, sampling)
    for dim, start, side in ((-2, geometry.top, geometry.num_rows), (-1, geometry.left, geometry.num_columns)):
        pixels = pixels.index_select(dim, torch.arange(start, start + side).clamp_(0, pixels.shape[dim] - 1))
    if sampling == "bilinear":
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    else:
        pixels = F.interpolate(pixels, size=(size, size), mode="nearest-exact")
    return pixels.flip(-1) if geometry.mirrored else pixels


def turn(pixels: Tensor, degrees: float, sampling: Sampling) -> Tensor:
    """An image (1, C, H, W) turned about its middle, its size kept; beyond it the edge is repeated."""
    height, width = pixels.shape[-2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # In grid_sample's coordinates either side is two long, hence the aspect.
    rows = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    grid = F.affine_grid(torch.tensor([rows], device=pixels.device), [1, 1, height, width], align_corners=False)
    turned = F.grid_sample(pixels.float(), grid, mode=sampling, padding_mode="border", align_corners=False)
    return turned.round_().to(pixels.dtype)


def recolour(pixels: Tensor, colour: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) of 0 to 255, with brightness, contrast and saturation of each image times its factors (N, 3)."""
    brightness, contrast, saturation = colour[:, :, None, None, None].unbind(dim=1)
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = torch.lerp(grey, pixels, saturation)
    return torch.lerp(grey.mean(dim=(1, 2, 3), keepdim=True), pixels, contrast).mul_(brightness).clamp_(0, 255)


def erase(pixels: Tensor, erased: Erased) -> None:
    """Covers a part of an image (3, H, W) of 0 to 255, in place."""
    pixels[:, *erased.place] = torch.from_numpy(erased.noise).to(pixels, non_blocking=True)
