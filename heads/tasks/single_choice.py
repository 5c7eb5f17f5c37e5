"""Loss, probabilities and confusion of the tasks that choose one class of several, for a sample or for each pixel of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.data.labels import MISSING_LABEL
from heads.spec import Fit

FOCAL_GAMMA = 2.0
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True, eq=False)
class Criterion:
    """The loss that a training minimises for one target: cross entropy in nats, or what the fit settings make of it.

    `gamma` above 0 makes it focal: each class's term times (1 - its probability) ** gamma. `class_weights` multiply the
    terms of their classes (0 for classes beyond them); `label_smoothing` spreads that share of a label evenly over all classes.
    """

    gamma: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    @property
    def by_row(self) -> bool:
        """Whether a sample's loss and gradient are the same to the bit beside any other samples."""
        return not self.gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N), 0 if the label is missing."""
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


def start_head(net: nn.Module, fit: Fit, counts: Tensor, num_samples: int) -> None:
    """Nothing: a new head favours no class, however often each occurs."""


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose classes (C) occur `counts` times in the whole train split.

    Balanced class weights are inverse to how often a class occurs there, with a mean of 1 over its labels (scikit-learn's
    `balanced`; 0 for a class that never occurs). Focal is that of Lin et al., "Focal Loss for Dense Object Detection", ICCV
    2017, with their gamma of 2; smoothing that of Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016.
    """
    weights = balanced_weights(counts).to(device) if fit.class_weights == "balanced" else None
    return Criterion(FOCAL_GAMMA if fit.loss == "focal" else 0.0, fit.label_smoothing, weights)


def balanced_weights(counts: Tensor) -> Tensor:
    """A weight a class, float32 (C): inverse to its count, with a mean of 1 over all counts; 0 for a count of 0."""
    counts = counts.double()
    shares = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, shares, 0.0).float()


def activate(logits: Tensor) -> Tensor:
    """Every class's probability (N, C, ...), 1 in sum."""
    return logits.softmax(dim=1, dtype=torch.float32)


def thresholds(scores: Tensor, temperature: float = 1.0) -> None:
    """None: the answer is the likeliest class."""


def confusion(counts: Tensor) -> list[list[int]]:
    """Counts of samples or pixels (true class, predicted class)."""
    table: list[list[int]] = square(counts).round().long().tolist()
    return table


def square(counts: Tensor) -> Tensor:
    """Counts of pairs of classes, in a row or in a table, as a table of float64 (C, C)."""
    num_classes = round(counts.numel() ** 0.5)
    return counts.double().reshape(num_classes, num_classes)
