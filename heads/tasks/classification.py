"""The task of classes: one label out of several for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.data.labels import MISSING_LABEL
from heads.data.masks import OpenMask
from heads.spec import Fit, Head
from heads.tasks import classifiers
from heads.tasks import measures as sample_measures
from heads.tasks.answers import Prediction, ReadMask, probability_table
from heads.tasks.facts import listed
from heads.tasks.rows import Scored

FOCAL_GAMMA = 2.0
LEAST_PROBABILITY = 1e-12


taps, build_head = classifiers.taps, classifiers.build_head


@dataclass(frozen=True, eq=False)
class Criterion:
    """What a training minimises for one target: cross entropy in nats, or what the fit settings make of it.

    `gamma` above 0 makes it focal: each class's term times (1 - its probability) ** gamma. `class_weights` multiply the
    terms of their classes (0 for classes beyond them); `label_smoothing` spreads that share of a label evenly over all classes.
    """

    gamma: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    @property
    def by_row(self) -> bool:
        """Whether a sample's loss and its gradient are, to the bit, what they are beside any other samples."""
        return not self.gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N), 0 where the label is missing."""
        num_classes, smoothing, weights = logits.shape[1], self.label_smoothing, self.class_weights
        if weights is not None:
            weights = F.pad(weights, (0, num_classes - len(weights)))
        if not self.gamma:
            return F.cross_entropy(
                logits, labels, weights, ignore_index=MISSING_LABEL, reduction="none", label_smoothing=smoothing
            )
        logs = logits.log_softmax(dim=1)
        truths = F.one_hot(labels.clamp(min=0), num_classes) * (1 - smoothing) + smoothing / num_classes
        terms = truths * -logs * (-torch.expm1(logs)) ** self.gamma
        return (terms if weights is None else terms * weights).sum(dim=1) * (labels != MISSING_LABEL)


PLAIN = Criterion()


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose classes (C) occur `counts` times in the whole train split.

    Balanced class weights are inverse to how often a class occurs there, with a mean of 1 over its labels (scikit-learn's
    `balanced`; 0 for a class that never occurs). Focal is that of Lin et al., "Focal Loss for Dense Object Detection", ICCV
    2017, with their gamma of 2; smoothing that of Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016.
    """
    weights = balanced_weights(counts).to(device) if fit.class_weights == "balanced" else None
    return Criterion(FOCAL_GAMMA if fit.loss == "focal" else 0.0, fit.label_smoothing, weights)


def balanced_weights(counts: Tensor) -> Tensor:
    """A weight a class, float32 (C): inverse to its count, with a mean of 1 over all that is counted; 0 for a count of 0."""
    counts = counts.double()
    shares = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, shares, 0.0).float()


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The confusion (true class, predicted class) of a batch as one row (C * C)."""
    num_classes = logits.shape[1]
    cells = labels.clamp(min=0) * num_classes + logits.argmax(dim=1)
    counted = (weights * (labels != MISSING_LABEL)).double()
    return torch.zeros(num_classes**2, dtype=torch.float64, device=logits.device).index_add_(0, cells, counted)


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The true class and every class's probability of each sample (N, 1 + C)."""
    truths = torch.where(weights > 0, labels, MISSING_LABEL).float()
    return torch.cat([truths[:, None], activate(logits.detach())], dim=1)


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """Every measure, those of probabilities only where `scores` were kept."""
    counted = sample_measures.from_counts(_table(counts))
    return counted if scores is None else counted | sample_measures.from_scores(scores[:, 1:], scores[:, 0].long())


def confusion(counts: Tensor) -> list[list[int]]:
    """Counts (true class, predicted class)."""
    table: list[list[int]] = _table(counts).round().long().tolist()
    return table


def thresholds(scores: Tensor) -> None:
    """None: the likeliest class is meant."""


def activate(logits: Tensor) -> Tensor:
    """Every class's probability (N, C), 1 in sum."""
    return logits.softmax(dim=1, dtype=torch.float32)


def encode(cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Tensor:
    """The number of each cell's class (N); MISSING_LABEL of an empty cell, and of a class that is not among the names."""
    numbers: Mapping[str | None, int] = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(cell, MISSING_LABEL) for cell in cells], dtype=torch.int64)


def answer(names: Sequence[str], logits: Tensor, size: tuple[int, int], thresholds: Sequence[float] | None = None) -> Prediction:
    """The likeliest class of one image by its logits (C)."""
    row = activate(logits[None])[0].tolist()
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(names[best], row[best], dict(zip(names, row, strict=True)))


def judge(digest: str, answer: Prediction, truth: str, head: Head, read_mask: ReadMask) -> Scored:
    """The answer beside the true class."""
    return Scored(digest, head.target, truth, answer.label, answer.probability, answer.probabilities)


def measure_rows(rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """Every measure of scored answers, over all classes that either side knows."""
    known = sorted({name for row in rows for name in (row.truth, *row.probabilities)})
    probabilities = probability_table(rows, known)
    number = {name: index for index, name in enumerate(known)}
    truths, guesses = torch.tensor([[number[row.truth], number[row.predicted]] for row in rows]).unbind(dim=1)
    counts = torch.bincount(truths * len(known) + guesses, minlength=len(known) ** 2).reshape(len(known), len(known))
    loss = -probabilities.gather(1, truths[:, None]).clamp(min=LEAST_PROBABILITY).log().mean().item()
    return {**sample_measures.from_counts(counts), **sample_measures.from_scores(probabilities, truths), "loss": loss}


def class_measures(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """None: single classes are in the confusion."""
    return {}


def describe(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    """What it tells apart, in a card's words."""
    return f"{len(names)} classes: {listed(list(names))}"


def _table(counts: Tensor) -> Tensor:
    num_classes = round(len(counts) ** 0.5)
    return counts.reshape(num_classes, num_classes)
