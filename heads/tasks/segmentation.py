"""The task of masks: a class for every pixel of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.row import Backbone
from heads.data.labels import MISSING_LABEL
from heads.data.masks import Masks, OpenMask
from heads.spec import Fit, Head
from heads.tasks import decoders, single_choice
from heads.tasks.answers import Extent, MaskPrediction, ReadMask
from heads.tasks.names import listed
from heads.tasks.rows import Scored

taps = decoders.taps
activate, confusion, thresholds = single_choice.activate, single_choice.confusion, single_choice.thresholds
start_head = single_choice.start_head


def build_head(head: Head, fit: Fit, backbone: Backbone, num_classes: int) -> nn.Module:
    """A head from the features of its taps to logits (N, `num_classes`, H', W') at the size of the finest."""
    return decoders.build_decoder(head.design, backbone, num_classes)


@dataclass(frozen=True, eq=False)
class Criterion:
    """The loss that a training minimises for one target: the mean of `of_pixels` over an image's labelled pixels, in nats, plus
    Dice loss if `dice`. So every image counts alike, however much of it is labelled."""

    by_row: ClassVar[bool] = False
    of_pixels: single_choice.Criterion | None = single_choice.PLAIN
    dice: bool = False

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image (N), 0 if none of its pixels has a label."""
        logits = logits.float()
        losses = pixel_losses(self.of_pixels, logits, labels) if self.of_pixels else logits.new_zeros(len(logits))
        return losses + dice_losses(logits, labels) if self.dice else losses


def pixel_losses(criterion: single_choice.Criterion, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each image (N) over its labelled pixels, by a criterion of classes."""
    # Cross entropy takes maps as they are, in half the time that rows take; focal loss takes rows alone.
    if criterion.gamma:
        pixels = criterion.losses(logits.movedim(1, -1).flatten(0, 2), labels.flatten())
    else:
        pixels = criterion.losses(logits, labels)
    return pixels.reshape(len(labels), -1).sum(dim=1) / (labels != MISSING_LABEL).sum(dim=(1, 2)).clamp(min=1)


def dice_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """One less the mean Dice coefficient of each image (N) over the classes in its truth; 0 if there are none.

    The soft coefficient, 2 sum(pq) / (sum(p^2) + sum(q^2)), of Milletari et al., "V-Net: Fully Convolutional Neural Networks for
    Volumetric Medical Image Segmentation", 3DV 2016.
    """
    truths = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    probabilities = logits.softmax(dim=1) * (labels != MISSING_LABEL)[:, None]
    sizes = truths.sum(dim=(2, 3))
    overlaps = 2 * (probabilities * truths).sum(dim=(2, 3))
    present = sizes > 0
    coefficients = torch.where(present, overlaps / (sizes + probabilities.square().sum(dim=(2, 3))).clamp(min=1), 0.0)
    return present.any(dim=1).float() - coefficients.sum(dim=1) / present.sum(dim=1).clamp(min=1)


PLAIN = Criterion()


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose classes (C) have `counts` pixels in the train split.

    Class weights, label smoothing and focal terms are those of classification, a pixel for a sample: balanced weights have a
    mean of 1 over the labelled pixels of train. They are of cross entropy, not of Dice, which is balanced in itself.
    """
    of_pixels = None if fit.loss == "dice" else single_choice.criterion_of(fit, counts, num_samples, device)
    return Criterion(of_pixels, dice=fit.loss in ("dice", "cross_entropy_dice"))


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The confusion (true class, predicted class) of a batch's pixels as one row (C * C)."""
    num_classes = logits.shape[1]
    counted = (labels != MISSING_LABEL) & (weights > 0)[:, None, None]
    # `max` gives the same places as `argmax`, on a CPU in a tenth of the time.
    cells = torch.where(counted, labels * num_classes + logits.max(dim=1).indices, num_classes**2)
    return torch.bincount(cells.flatten(), minlength=num_classes**2 + 1)[:-1].double()


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> None:
    """None: pixels are measured by counts alone."""


def temperatures(scores: Tensor) -> Sequence[float | None]:
    """None of each: a mask is told without probabilities."""
    return [None] * len(scores)


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """`miou` and `dice`, means over the classes that occur in truth or prediction, and `pixel_accuracy`; NaN of no pixels."""
    hits, truths, guesses = _parts(counts)
    shared = (truths + guesses) > 0
    return {
        "miou": (hits / (truths + guesses - hits))[shared].mean().item(),
        "dice": (2 * hits / (truths + guesses))[shared].mean().item(),
        "pixel_accuracy": (hits.sum() / truths.sum()).item(),
    }


def measures_of_each(counts: Tensor, scores: Tensor | None) -> list[dict[str, float]]:
    """The `measures` of several models from their counts (V, C * C)."""
    return [measures(row, None) for row in counts]


def class_ious(counts: Tensor) -> list[float]:
    """Each class's intersection over union, of a summed `count` or its table; NaN for a class in neither truth nor prediction."""
    hits, truths, guesses = _parts(counts)
    ious: list[float] = (hits / (truths + guesses - hits)).tolist()
    return ious


def encode(cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Masks:
    """The cells' mask files, the class number of each value in them, and how many pixels each class has."""
    files = [None if cell is None else open_mask(cell) for cell in cells]
    numbers = {int(name): number for number, name in enumerate(names)}
    counts = [0] * len(names)
    for file in files:
        for value, count in (file.pixels if file else {}).items():
            if value in numbers:
                counts[numbers[value]] += count
    paths = [None if file is None else file.path for file in files]
    return Masks(paths, numbers, counts, [file is not None and file.as_stored for file in files])


def answer(names: Sequence[str], logits: Tensor, extent: Extent, thresholds: Sequence[float] | None = None) -> MaskPrediction:
    """The likeliest value of each pixel of one image by its logits (C, S, S), at the image's own width and height."""
    width, height = map(int, extent)
    # One class at a time: the logits of all at a large image's full size would be gigabytes.
    best = chosen = torch.empty(0)
    for number, plane in enumerate(logits.float()):
        full = F.interpolate(plane[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        if number == 0:
            best, chosen = full, torch.zeros_like(full, dtype=torch.int64)
            continue
        better = full > best
        best, chosen = torch.where(better, full, best), torch.where(better, number, chosen)
    counts = chosen.flatten().bincount(minlength=len(names)).tolist()
    values = np.array([int(name) for name in names])
    kept = values.astype(np.uint8 if values.max() < 256 else np.uint16)[chosen.cpu().numpy()]
    return MaskPrediction(kept, {name: count / chosen.numel() for name, count in zip(names, counts, strict=True)})


def judge(digest: str, answer: MaskPrediction, truth: str, head: Head, read_mask: ReadMask) -> Scored:
    """The answer and the true mask as a row, compared pixel by pixel, ignored values left out."""
    mask = read_mask()
    counted = ~np.isin(mask, head.ignore)
    pairs = mask[counted].astype(np.int64) * 2**16 + answer.mask[counted]
    values, counts = np.unique(pairs, return_counts=True)
    listed_pairs = zip(values.tolist(), counts, strict=True)
    pixels = tuple((str(pair >> 16), str(pair & 0xFFFF), int(count)) for pair, count in listed_pairs)
    right, total = sum(n for a, b, n in pixels if a == b), sum(n for _, _, n in pixels)
    return Scored(digest, head.target, truth, "", right / max(1, total), {}, pixels)


def measure_rows(rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """Every measure over all pixels of scored answers, and `iou_<value>` of each class that occurs."""
    known = sorted({name for row in rows for pair in row.pixels for name in pair[:2]}, key=int)
    number = {name: index for index, name in enumerate(known)}
    counts = torch.zeros(len(known), len(known), dtype=torch.float64)
    for row in rows:
        for truth, guess, count in row.pixels:
            counts[number[truth], number[guess]] += count
    ious = dict(zip(known, class_ious(counts), strict=True))
    return measures(counts.flatten(), None) | {f"iou_{name}": iou for name, iou in ious.items()}


def class_measures(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """`iou_<value>` of each class that occurs."""
    ious = zip(names, class_ious(torch.tensor(confusion)), strict=True)
    return {f"iou_{name}": iou for name, iou in ious if iou == iou}


def describe(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    """The mask's values, in a card's words."""
    ignored = f"; pixels of {listed(list(map(str, head.ignore)))} counted for nothing" if head.ignore else ""
    return f"masks of {len(names)} values: {listed(list(names))}{ignored}"


def _parts(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many pixels (C) of each class are right, are true, are predicted."""
    table = single_choice.square(counts)
    return table.diagonal(), table.sum(dim=1), table.sum(dim=0)
