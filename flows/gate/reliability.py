"""How far a model's probabilities are from how often they are right, from score rows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flows.gate.answers import read_pair
from flows.gate.bootstrap import CHUNK_CELLS, Interval, basic_interval, draw_pairs
from flows.gate.evidence import LEVEL, Rows
from flows.gate.measures import Answers, Table
from heads.catalogue import TASK_FACTS, Task

# As on validation and in torchmetrics: bins of equal width, closed below, and certainty in a bin of its own.
NUM_BINS = 15
NUM_RESAMPLES = 2000
NUM_CHANCES = 1000


@dataclass(frozen=True)
class Gaps:
    """What each of N samples adds to its bins (K, N): how often it is right less how sure it is, over its L answers.

    `sure` (N, L) is how sure of each answer the model is, `bins` (N, L) the number of its bin.
    """

    table: Table
    sure: Table
    bins: NDArray[np.intp]

    def error(self, weights: Table) -> Table:
        """The expected calibration error (B) of samples that count as the weights (N, B) say."""
        error: Table = np.abs(self.table @ weights).sum(axis=0) / (weights.sum(axis=0) * self.sure.shape[1])
        return error

    def chance(self, seed: int) -> float:
        """The error that a model whose probabilities hold has on such samples in all but 2.5 % of cases.

        Consistency resampling (Brocker and Smith 2007, Weather and Forecasting 22:651-661): answers are right as often as these
        probabilities say.
        """
        random, sure = np.random.default_rng(seed), self.sure.ravel()
        inside = (np.arange(NUM_BINS + 1)[:, None] == self.bins.ravel()).astype(np.float64)
        errors, width = [], max(1, CHUNK_CELLS // sure.size)
        for start in range(0, NUM_CHANCES, width):
            right = random.random((sure.size, min(width, NUM_CHANCES - start))) < sure[:, None]
            errors.append(np.abs(inside @ (right - sure[:, None])).sum(axis=0) / sure.size)
        return float(np.quantile(np.concatenate(errors), (1 + LEVEL) / 2))


def gaps_of(task: Task, after: Rows, before: Rows) -> tuple[Gaps, Gaps] | None:
    """The gaps of two models on the same samples; None of masks and tags, and of label sets without their probabilities.

    Of classes the probability of the answer counts; of label sets each label of each sample, as a yes or no.
    """
    match TASK_FACTS[task].tells:
        case "pixels" | "tags":
            return None  # a table of masks counts pixels, one of tags spans, and neither has probabilities
        case "class":
            keys = sorted(after)
            return _of_classes(after, keys), _of_classes(before, keys)
        case "labels":
            _, *answers = read_pair(task, after, before)
            gaps = [_of_labels(each) for each in answers if each.scores is not None]
            return (gaps[0], gaps[1]) if len(gaps) == len(answers) else None


def calibration_error(new: Gaps, old: Gaps, seed: int) -> tuple[Interval, Interval]:
    """The expected calibration error of the new model, and how much greater it is than the old one's, with 95 % intervals.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Intervals are basic bootstrap ones (Davison and Hinkley
    1997, section 5.2): the error is biased upwards on few samples, and a resample's again by about as much, which they undo.
    """
    n = new.table.shape[1]
    values, differences = draw_pairs(new.error, old.error, n, seed, NUM_RESAMPLES)
    own, other = (float(gaps.error(np.ones((n, 1)))[0]) for gaps in (new, old))
    interval = basic_interval(own, values)
    return replace(interval, low=max(0.0, interval.low)), basic_interval(own - other, differences)


def _of_classes(rows: Rows, keys: list[tuple[str, str]]) -> Gaps:
    sure = np.array([rows[key].probability for key in keys])
    right = np.array([rows[key].predicted == rows[key].truth for key in keys])
    return _binned(sure[:, None], right[:, None])


def _of_labels(answers: Answers) -> Gaps:
    scores = answers.scores
    assert scores is not None
    return _binned(np.maximum(scores, 1 - scores), (scores >= 0.5) == (answers.truths > 0))


def _binned(sure: Table, right: Table) -> Gaps:
    """The gaps of answers (N, L), L to a sample."""
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1), sure, side="right") - 1
    table = np.zeros((NUM_BINS + 1, len(sure)))
    np.add.at(table, (bins, np.arange(len(sure))[:, None]), right - sure)
    return Gaps(table, sure, bins)
