"""Measures of label sets and masks as functions of how often each sample counts, so that resamples are matrix products.

Weights of B columns stand for B data sets, in which sample n occurs weights[n, b] times; all ones are the samples as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from flows.errors import AskedWrongly
from flows.gate.clusters import Clusters, count_touched
from heads.catalogue import TASK_FACTS, Task, Tells

Table = NDArray[np.float64]
# From weights (N, B) to the measure (B) of each column; NaN if it is not defined on those samples.
Measure = Callable[[Table], Table]


@dataclass(frozen=True)
class Answers:
    """One model's answers, samples by classes (N, C): the truth, the model's answer, and how much of both agrees (`hits`).

    Of label sets these count labels, and `scores` are the labels' probabilities; of masks they count pixels, of tags spans.
    """

    truths: Table
    guesses: Table
    hits: Table
    scores: Table | None = None

    @property
    def is_perfect(self) -> NDArray[np.bool_]:
        """Which samples (N) are wholly right."""
        right: NDArray[np.bool_] = ((self.hits == self.truths) & (self.hits == self.guesses)).all(axis=1)
        return right


def measure_of(task: Task, name: str, answers: Answers) -> Measure:
    """The named measure of these answers. Raises AskedWrongly if the task has no such measure, or the answers lack scores.

    Measures are those of scikit-learn with zero_division=0: macro means go over the classes that occur in truth or prediction,
    weighted means count a class as often as it occurs in truth, `auroc` and `average_precision` go over the labels that occur
    in truth (for `auroc` not on every sample). `accuracy` of label sets is the share of sets that are wholly right.
    """
    counted, ranked = MEASURES[TASK_FACTS[task].tells]
    if name in ranked:
        if answers.scores is None:
            raise AskedWrongly(f"{name} needs every label's probability, and the score table has none; score both models again")
        return _over_labels(ranked[name], answers.scores, answers.truths)
    if name not in counted:
        known = ", ".join((*counted, *ranked))
        raise AskedWrongly(f"a {task} target cannot be promoted by {name!r}; allowed: {known}; change promotion.metric")
    formula = counted[name]
    parts = [np.ascontiguousarray(part.T) for part in (answers.hits, answers.truths, answers.guesses)]
    if name == "accuracy":
        right = answers.is_perfect.astype(np.float64)[None]
        parts = [right, np.ones_like(right), np.ones_like(right)]
    return lambda weights: formula(*(part @ weights for part in parts))


def num_differing(new: Answers, old: Answers, *, ranked: bool, clusters: Clusters | None = None) -> int:
    """On how many samples, or clusters, two models differ: in their answers, or, for a measure that ranks, in their scores."""
    if ranked and new.scores is not None and old.scores is not None:
        differs = (new.scores != old.scores).any(axis=1)
    else:
        differs = ((new.hits != old.hits) | (new.guesses != old.guesses)).any(axis=1)
    return count_touched(differs, clusters)


def is_ranked(task: Task, name: str) -> bool:
    """Whether a measure ranks samples by probability, rather than counting answers."""
    return name in MEASURES[TASK_FACTS[task].tells][1]


def _ratio(parts: Table, wholes: Table) -> Table:
    # Of counts: where the whole is zero, so are its parts.
    return parts / np.maximum(wholes, 1)


def _known_ratio(parts: Table, wholes: Table) -> Table:
    known: Table = np.where(wholes > 0, _ratio(parts, wholes), np.nan)
    return known


def _mean(values: Table, present: NDArray[np.bool_]) -> Table:
    return _known_ratio((values * present).sum(axis=0), present.sum(axis=0).astype(np.float64))


def _share(hits: Table, truths: Table, _: Table) -> Table:
    return _known_ratio(hits.sum(axis=0), truths.sum(axis=0))


def _jaccard_macro(hits: Table, truths: Table, guesses: Table) -> Table:
    either = truths + guesses - hits
    return _mean(_ratio(hits, either), either > 0)


def _f1_macro(hits: Table, truths: Table, guesses: Table) -> Table:
    return _mean(_ratio(2 * hits, truths + guesses), truths + guesses > 0)


def _f1_micro(hits: Table, truths: Table, guesses: Table) -> Table:
    return _known_ratio(2 * hits.sum(axis=0), truths.sum(axis=0) + guesses.sum(axis=0))


def _f1_weighted(hits: Table, truths: Table, guesses: Table) -> Table:
    return _known_ratio((_ratio(2 * hits, truths + guesses) * truths).sum(axis=0), truths.sum(axis=0))


def _precision_macro(hits: Table, truths: Table, guesses: Table) -> Table:
    return _mean(_ratio(hits, guesses), truths + guesses > 0)


def _recall_macro(hits: Table, truths: Table, guesses: Table) -> Table:
    return _mean(_ratio(hits, truths), truths + guesses > 0)


def _auroc(hits: Table, totals: Table) -> Table:
    misses = totals - hits
    # Each negative counts the positives above it, and half of those that tie with it (Mann and Whitney 1947).
    above = hits.cumsum(axis=0) - hits / 2
    return _known_ratio((misses * above).sum(axis=0), hits.sum(axis=0) * misses.sum(axis=0))


def _average_precision(hits: Table, totals: Table) -> Table:
    precision = _ratio(hits.cumsum(axis=0), totals.cumsum(axis=0))
    return _known_ratio((hits * precision).sum(axis=0), hits.sum(axis=0))


def _over_labels(formula: Callable[[Table, Table], Table], scores: Table, truths: Table) -> Measure:
    """The mean of a ranking measure over the labels on which it is defined."""
    rankings = [_ranking(*column) for column in zip(scores.T, truths.T > 0, strict=True) if column[1].any()]

    def measure(weights: Table) -> Table:
        total, num_defined = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for positives, samples in rankings:
            value = formula(positives @ weights, samples @ weights)
            defined = np.isfinite(value)
            total += np.where(defined, value, 0.0)
            num_defined += defined
        return _known_ratio(total, num_defined)

    return measure


def _ranking(scores: Table, positive: NDArray[np.bool_]) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Two matrices (R, N) that sum samples into the runs of a ranking by falling score: those with the label, and all.

    Samples of equal score are one run; so are neighbouring runs without the label, which no measure tells apart.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    has_label = np.logical_or.reduceat(positive[order], starts)
    starts = starts[np.r_[True, has_label[1:] | has_label[:-1]]]
    run = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    with_label = positive[order]
    shape = (len(starts), len(order))
    return (
        scipy.sparse.csr_array((np.ones(with_label.sum()), (run[with_label], order[with_label])), shape=shape),
        scipy.sparse.csr_array((np.ones(len(order)), (run, order)), shape=shape),
    )


Counted = Mapping[str, Callable[[Table, Table, Table], Table]]
Ranked = Mapping[str, Callable[[Table, Table], Table]]
MEASURES: Mapping[Tells, tuple[Counted, Ranked]] = {
    "pixels": ({"miou": _jaccard_macro, "pixel_accuracy": _share, "dice": _f1_macro}, {}),
    "tags": ({"span_f1": _f1_micro}, {}),
    "labels": (
        {
            "accuracy": _share,
            "f1_macro": _f1_macro,
            "f1_micro": _f1_micro,
            "f1_weighted": _f1_weighted,
            "precision_macro": _precision_macro,
            "recall_macro": _recall_macro,
        },
        {"average_precision": _average_precision, "auroc": _auroc},
    ),
}
