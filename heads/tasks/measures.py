"""Measures of classification from summed counts and from every sample's probabilities; sums are divided once, here.

All of them take one model's numbers, or those of many on the same samples in a stack (..., as the shapes say), and give each
measure as float64 (...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

NUM_BINS = 15
TOP = 5
# How many scores are ranked at once, in whole columns: on a CPU so few that they stay in its caches.
RANKED_AT_ONCE = 2**18
RANKED_AT_ONCE_ON_GPU = 2**25


def from_counts(confusion: Tensor) -> dict[str, Tensor]:
    """The measures, by name, of a confusion (..., C, C): counts (true class, predicted class).

    As scikit-learn has them with zero_division=0: macro means go over the classes that occur in truth or prediction,
    weighted ones by how often a class occurs in truth. Micro F1 is the accuracy where each sample has one label. Every
    measure of no samples is NaN.
    """
    table = confusion.double()
    hits, truths, guesses = table.diagonal(dim1=-2, dim2=-1), table.sum(dim=-1), table.sum(dim=-2)
    num_present = ((truths + guesses) > 0).sum(dim=-1)
    f1 = zero_divided(2 * hits, truths + guesses)
    accuracy = hits.sum(dim=-1) / table.sum(dim=(-2, -1))
    # A class that is in neither adds 0 to each sum.
    return {
        "accuracy": accuracy,
        "f1_macro": f1.sum(dim=-1) / num_present,
        "f1_micro": accuracy,
        "f1_weighted": (f1 * truths).sum(dim=-1) / truths.sum(dim=-1),
        "precision_macro": zero_divided(hits, guesses).sum(dim=-1) / num_present,
        "recall_macro": zero_divided(hits, truths).sum(dim=-1) / num_present,
    }


def from_scores(probabilities: Tensor, truths: Tensor) -> dict[str, Tensor]:
    """The measures, by name, of probabilities (..., N, C) against true classes (N); those not defined on them are left out.

    - `top5`, if there are more than five classes: the share of samples whose true class is among the five likeliest.
    - `auroc` and `average_precision`: the mean of each class against the rest, over the classes that occur in truth (and for
      auroc are not all of it).
    - `ece`: expected calibration error of the likeliest class in 15 bins of equal width (Guo et al., "On Calibration of Modern
      Neural Networks", ICML 2017), binned as torchmetrics does: closed below, certainty in a bin of its own.
    - `brier`: the mean squared distance to the truth (Brier 1950), halved for two classes as scikit-learn does.
    """
    if not len(truths):
        return {}
    probabilities = probabilities.double()
    num_classes = probabilities.shape[-1]
    truth_table = torch.nn.functional.one_hot(truths, num_classes).bool()
    distances = (probabilities - truth_table.double()).square().sum(dim=-1)
    return {
        **({"top5": _in_top(probabilities, truths)} if num_classes > TOP else {}),
        **from_ranks(probabilities, truth_table),
        "ece": calibration_error(probabilities, truths),
        "brier": distances.mean(dim=-1) / (2 if num_classes == 2 else 1),
    }


def from_ranks(scores: Tensor, positive: Tensor) -> dict[str, Tensor]:
    """`auroc` and `average_precision` of scores (..., N, C) with truths `positive` (N, C) or (..., N, C): the means over the
    columns that have one.

    A column has the first if it has positives and negatives, the second if it has positives.
    """
    columns, truths = (x.movedim(-2, 0).flatten(1) for x in (scores, positive.expand_as(scores)))
    step = max(1, (RANKED_AT_ONCE if scores.device.type == "cpu" else RANKED_AT_ONCE_ON_GPU) // len(columns))
    parts = [slice(start, start + step) for start in range(0, columns.shape[1], step)]
    found = zip(*(_ranked(columns[:, part], truths[:, part]) for part in parts), strict=True)
    by_column = (torch.cat(ranked).view(*scores.shape[:-2], -1) for ranked in found)
    means = zip(("auroc", "average_precision"), (values.nanmean(dim=-1) for values in by_column), strict=True)
    return {name: values for name, values in means if not values.isnan().all()}


def zero_divided(parts: Tensor, wholes: Tensor) -> Tensor:
    """Parts over wholes; 0 for a whole of 0."""
    return torch.where(wholes > 0, parts / wholes.clamp(min=1), 0.0)


def _in_top(probabilities: Tensor, truths: Tensor) -> Tensor:
    own = probabilities.gather(-1, truths[:, None].expand(*probabilities.shape[:-1], 1))
    later = torch.arange(probabilities.shape[-1], device=truths.device) > truths[:, None]
    # Of equal probabilities the later class goes first, as in scikit-learn.
    before = (probabilities > own) | ((probabilities == own) & later)
    return (before.sum(dim=-1) < TOP).double().mean(dim=-1)


def _ranked(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """The area under each column's ROC curve and its average precision (C); NaN if it has none."""
    # A column's numbers side by side: all steps along them are faster.
    rows, truths = scores.T.contiguous(), positive.T.contiguous()
    order = _descending(rows)
    ordered, hits = rows.gather(1, order), truths.gather(1, order).double().cumsum(dim=1)
    misses = torch.arange(1, hits.shape[1] + 1, dtype=hits.dtype, device=hits.device) - hits
    # Equal scores count together, at the last of them: up to it nothing is gained.
    ends = torch.cat([ordered[:, 1:] != ordered[:, :-1], torch.ones_like(ordered[:, :1], dtype=torch.bool)], dim=1)
    hits, misses = (torch.where(ends, counts, 0.0).cummax(dim=1).values for counts in (hits, misses))
    start = torch.zeros_like(hits[:, :1])
    gained, lost = hits.diff(dim=1, prepend=start), misses.diff(dim=1, prepend=start)
    # Summed down columns, as scores come: another order of sums would round otherwise.
    areas, precisions = (x.T.contiguous() for x in ((hits - gained / 2) * lost, gained * hits / (hits + misses).clamp(min=1)))
    return areas.sum(dim=0) / (hits[:, -1] * misses[:, -1]), precisions.sum(dim=0) / hits[:, -1]


def _descending(rows: Tensor) -> Tensor:
    """The places (C, N) of each row's numbers, greatest first."""
    # NumPy sorts several times as fast as torch does on a CPU.
    if rows.device.type == "cpu":
        return torch.from_numpy(np.argsort(rows.numpy(), axis=1)).flip(1)
    return rows.argsort(dim=1, descending=True)


def calibration_error(probabilities: Tensor, truths: Tensor) -> Tensor:
    """The expected calibration error (...) of probabilities (..., N, C) against true classes (N), as in `from_scores`."""
    confidences, guesses = probabilities.max(dim=-1)
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=confidences.dtype, device=confidences.device)
    bins = torch.bucketize(confidences, edges, right=True) - 1
    gaps = edges.new_zeros(*bins.shape[:-1], len(edges)).scatter_add_(-1, bins, (guesses == truths).double() - confidences)
    return gaps.abs().sum(dim=-1) / bins.shape[-1]


def as_floats(measures: Mapping[str, Tensor]) -> dict[str, float]:
    """One model's measures as floats."""
    return of_each({name: value[None] for name, value in measures.items()})[0]


def of_each(measures: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """The measures (V) of many models as floats, a dict a model."""
    rows: Sequence[Sequence[float]] = torch.stack(list(measures.values()), dim=-1).tolist()
    return [dict(zip(measures, row, strict=True)) for row in rows]
