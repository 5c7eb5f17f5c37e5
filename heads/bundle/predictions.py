"""What a model answers of one image, a value a task: a class, a set of labels, a mask."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads.spec import Head
from heads.tasks.table import TASKS

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """A class: the likeliest one, its probability, and every class's."""

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
    """A mask of the image's own height and width, in the values that the training masks have, in uint8 or uint16.

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


Answer = Prediction | Labels | MaskPrediction


def answer(
    head: Head, names: Sequence[str], logits: Tensor, size: tuple[int, int], thresholds: Sequence[float] | None = None
) -> Answer:
    """What a head's logits of one image, (C) or of masks (C, S, S), mean; `size` is the picture's width and height."""
    if head.task == "segmentation":
        return _mask(names, logits, size)
    row = TASKS[head.task].activate(logits[None])[0].tolist()
    probabilities = dict(zip(names, row, strict=True))
    if head.task == "multilabel":
        least = thresholds or [DEFAULT_THRESHOLD] * len(names)
        return Labels(tuple(name for name, x, t in zip(names, row, least, strict=True) if x >= t), probabilities)
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(names[best], row[best], probabilities)


def _mask(names: Sequence[str], logits: Tensor, size: tuple[int, int]) -> MaskPrediction:
    # A class at a time: all of a large picture's at its full size would be gigabytes.
    best = chosen = torch.empty(0)
    for number, plane in enumerate(logits.float()):
        full = F.interpolate(plane[None, None], size=(size[1], size[0]), mode="bilinear", align_corners=False)[0, 0]
        if number == 0:
            best, chosen = full, torch.zeros_like(full, dtype=torch.int64)
            continue
        better = full > best
        best, chosen = torch.where(better, full, best), torch.where(better, number, chosen)
    counts = chosen.flatten().bincount(minlength=len(names)).tolist()
    values = np.array([int(name) for name in names])
    kept = values.astype(np.uint8 if values.max() < 256 else np.uint16)[chosen.cpu().numpy()]
    return MaskPrediction(kept, {name: count / chosen.numel() for name, count in zip(names, counts, strict=True)})
