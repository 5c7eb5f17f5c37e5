"""The task of classes: one label out of several for a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.data.labels import MISSING_LABEL
from heads.data.masks import OpenMask
from heads.spec import Head
from heads.tasks import classifiers, single_choice
from heads.tasks import measures as sample_measures
from heads.tasks.answers import Extent, Prediction, ReadMask, probability_table
from heads.tasks.names import listed
from heads.tasks.rows import Scored
from heads.tasks.temperature import LEAST_FLOAT, of_classes

taps, build_head = classifiers.taps, classifiers.build_head
PLAIN, criterion_of, start_head = single_choice.PLAIN, single_choice.criterion_of, single_choice.start_head
activate, confusion, thresholds = single_choice.activate, single_choice.confusion, single_choice.thresholds


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The confusion (true class, predicted class) of a batch as one row (C * C), of a stack (V, N, C) as (V, C * C)."""
    num_classes = logits.shape[-1]
    cells = labels.clamp(min=0) * num_classes + logits.argmax(dim=-1)
    counted = (weights * (labels != MISSING_LABEL)).double()
    return counted.new_zeros(*cells.shape[:-1], num_classes**2).scatter_add_(-1, cells, counted.expand_as(cells))


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The true class and every class's probability of each sample (N, 1 + C)."""
    truths = torch.where(weights > 0, labels, MISSING_LABEL).float()
    return torch.cat([truths[:, None], activate(logits.detach())], dim=1)


def temperatures(scores: Tensor) -> Sequence[float | None]:
    """The temperature of each model's logits, from its rows (V, N, 1 + C)."""
    return of_classes(scores[..., 1:].double().clamp(min=LEAST_FLOAT).log(), scores[0, :, 0].long())


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """Every measure, those of probabilities only if `scores` were kept."""
    return measures_of_each(counts[None], None if scores is None else scores[None])[0]


def measures_of_each(counts: Tensor, scores: Tensor | None) -> list[dict[str, float]]:
    """The `measures` of several models on the same samples, from counts (V, C * C) and scores (V, N, 1 + C)."""
    num_classes = round(counts.shape[1] ** 0.5)
    found = sample_measures.from_counts(counts.reshape(-1, num_classes, num_classes))
    if scores is not None:
        found |= sample_measures.from_scores(scores[..., 1:], scores[0, :, 0].long())
    return sample_measures.of_each(found)


def encode(cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Tensor:
    """The number of each cell's class (N); MISSING_LABEL of an empty cell, and of a class that is not among the names."""
    numbers: Mapping[str | None, int] = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(cell, MISSING_LABEL) for cell in cells], dtype=torch.int64)


def answer(names: Sequence[str], logits: Tensor, extent: Extent, thresholds: Sequence[float] | None = None) -> Prediction:
    """The likeliest class of one image by its logits (C)."""
    row = activate(logits[None])[0].tolist()
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(names[best], row[best], dict(zip(names, row, strict=True)))


def judge(digest: str, answer: Prediction, truth: str, head: Head, read_mask: ReadMask) -> Scored:
    """The answer and the true class as a row."""
    return Scored(digest, head.target, truth, answer.label, answer.probability, answer.probabilities)


def measure_rows(rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """Every measure of scored answers, over all classes that either side knows."""
    known = sorted({name for row in rows for name in (row.truth, *row.probabilities)})
    probabilities = probability_table(rows, known)
    number = {name: index for index, name in enumerate(known)}
    truths, guesses = torch.tensor([[number[row.truth], number[row.predicted]] for row in rows]).unbind(dim=1)
    counts = torch.bincount(truths * len(known) + guesses, minlength=len(known) ** 2).reshape(len(known), len(known))
    loss = -probabilities.gather(1, truths[:, None]).clamp(min=single_choice.LEAST_PROBABILITY).log().mean().item()
    found = sample_measures.from_counts(counts) | sample_measures.from_scores(probabilities, truths)
    return {**sample_measures.as_floats(found), "loss": loss}


def class_measures(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """Empty: the confusion says all of single classes."""
    return {}


def describe(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    """The head's classes, in a card's words."""
    return f"{len(names)} classes: {listed(list(names))}"
