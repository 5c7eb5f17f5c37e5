"""A model's answer for one sample, a type for each task, and the table of probabilities that measures read."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heads.tasks.rows import Scored

# What an answer extends over: an image's own width and height, or a text's words.
Extent = tuple[int, int] | tuple[str, ...]
# Reads the true mask (H, W) of the image that was answered.
ReadMask = Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Prediction:
    """The likeliest class, its probability, and every class's probability."""

    label: str
    probability: float
    probabilities: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Labels:
    """A set of labels: those whose probability reaches their threshold, and every label's probability."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """A mask (H, W) of the image's own size with the values of the training masks, in uint8 or uint16.

    `shares` are each class's share of the pixels.
    """

    mask: np.ndarray[Any, Any] = field(repr=False)
    shares: Mapping[str, float]

    def picture(self) -> Image.Image:
        """The mask as a picture whose pixels are its values, shown in colours where they fit one byte: save it as PNG."""
        image = Image.fromarray(self.mask)
        if self.mask.dtype == np.uint8:
            image.putpalette([level for value in range(256) for level in _colour(value)])
        return image


def _colour(value: int) -> tuple[int, ...]:
    """Black for 0; else hues a golden angle apart, so that neighbouring values differ."""
    hue, lightness = value * (math.sqrt(5) - 1) / 2 % 1, 0.62 - 0.14 * (value % 3)
    return tuple(round(255 * level) for level in colorsys.hls_to_rgb(hue, lightness, 0.75)) if value else (0, 0, 0)


@dataclass(frozen=True)
class TextSpan:
    """Words of a text that are of one type: from number `start` to before `end`, and as a text, a space between them."""

    type: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class TagsPrediction:
    """The words of a text, which white space parts, a tag of each (BIO), and the spans that these mark."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    spans: tuple[TextSpan, ...]


Answer = Prediction | Labels | MaskPrediction | TagsPrediction


def probability_table(rows: Sequence[Scored], names: Sequence[str]) -> Tensor:
    """Each row's probability of each name (N, C), 0 if the model does not know the name."""
    return torch.tensor([[row.probabilities.get(name, 0.0) for name in names] for row in rows], dtype=torch.float64)
