"""The challengers of one recipe beside the champion, sample by sample. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flows.gate.account import Values
from flows.gate.answers import read_pair, right
from flows.gate.evidence import Rows
from flows.gate.measures import Measure, measure_of
from heads.catalogue import TASK_FACTS, Task

# By how much a sample's weight is changed to see what it adds: far above rounding, far below what bends a measure.
STEP = 1e-4
COLUMNS = 256


def judged_keys(newest: Rows, champion: Rows) -> list[tuple[str, str]]:
    """The samples that the newest challenger is judged on, which are those of the champion; sorted."""
    return sorted(newest.keys() & champion.keys())


def sample_values(challengers: Sequence[Rows], champion: Rows, task: Task, measure: str) -> tuple[Values, Values]:
    """What each sample adds to the measure (k, n): of k challengers, the newest last, and of the champion beside each of them.

    Samples are those of the newest challenger. Both are NaN where an earlier one was not scored on a sample, which came, or got
    its label, later. Of classes a sample adds 1 if it is read rightly, else 0; of other tasks its influence on the measure.
    """
    keys = judged_keys(challengers[-1], champion)
    values = np.full((2, len(challengers), len(keys)), np.nan)
    for number, rows in enumerate(challengers):
        known = np.array([key in rows for key in keys], dtype=np.bool_)
        shared = [key for key in keys if key in rows]
        if shared:
            values[:, number, known] = _pair(
                {key: rows[key] for key in shared}, {key: champion[key] for key in shared}, task, measure
            )
    return values[0], values[1]


def _pair(challenger: Rows, champion: Rows, task: Task, measure: str) -> tuple[Values, Values]:
    if TASK_FACTS[task].tells == "class":
        keys = sorted(champion)
        return right(challenger, keys).astype(np.float64), right(champion, keys).astype(np.float64)
    _, *answers = read_pair(task, challenger, champion)
    new, old = (contributions(measure_of(task, measure, each), len(champion)) for each in answers)
    return new, old


def contributions(measure: Measure, num_samples: int) -> Values:
    """What each sample (n) adds to a measure: the measure and the sample's influence on it, so that their mean is the measure.

    The infinitesimal jackknife (Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6).
    """
    value = float(measure(np.ones((num_samples, 1)))[0])
    found = np.empty(num_samples)
    for start in range(0, num_samples, COLUMNS):
        places: Sequence[int] = range(start, min(start + COLUMNS, num_samples))
        weights = np.ones((num_samples, len(places)))
        weights[places, np.arange(len(places))] += STEP
        found[start : start + len(places)] = value + num_samples * (measure(weights) - value) / STEP
    return found
