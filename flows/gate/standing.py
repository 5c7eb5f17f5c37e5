"""How well a model reads the holdout: accuracies with intervals, and how often each probability is right. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flows.gate.case import rows_of
from flows.gate.classes import wilson_interval
from flows.gate.evidence import Rows
from flows.records import ScoreTable
from heads.catalogue import TASK_FACTS, Task

NUM_BINS = 10


@dataclass(frozen=True)
class Accuracy:
    """The share of some samples that are read rightly, with its 95 % interval (Wilson 1927)."""

    name: str
    num_samples: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """The answers whose probability is from `low` to `high`: how many, their mean probability, and the share that is right."""

    low: float
    high: float
    num_answers: int
    probability: float
    right: float


def accuracies(table: ScoreTable, target: str, groups: Mapping[str, str]) -> dict[str, tuple[Accuracy, ...]]:
    """The accuracy on all samples, by class and by group, under the keys `all`, `class` and `group`; none for masks and tags.

    Of sets of labels a sample is right if all of its labels are, and the parts under `class` are labels, each a yes or no.
    """
    rows = rows_of(table, target)
    task = table.tasks.get(target, "classification")
    if not rows or TASK_FACTS[task].tells in ("pixels", "tags"):
        return {}
    right = {key: row.predicted == row.truth for key, row in rows.items()}
    by_group: dict[str, list[bool]] = defaultdict(list)
    for key, row in rows.items():
        if group := groups.get(row.digest):
            by_group[group].append(right[key])
    return {
        "all": (_accuracy("all", list(right.values())),),
        "class": tuple(_accuracy(name, told) for name, told in sorted(_by_class(rows, task).items())),
        "group": tuple(_accuracy(name, told) for name, told in sorted(by_group.items())),
    }


def reliability(table: ScoreTable, target: str) -> tuple[Bin, ...]:
    """How often answers of each tenth of probability are right; empty tenths are left out, and there are none for masks.

    Of classes it is the probability of the answer, of sets of labels that of each label (Guo et al., ICML 2017).
    """
    rows, task = rows_of(table, target), table.tasks.get(target, "classification")
    pairs = np.array(list(_answers(rows, task)), dtype=np.float64).reshape(-1, 2)
    places = np.minimum((pairs[:, 0] * NUM_BINS).astype(int), NUM_BINS - 1)
    return tuple(
        Bin(place / NUM_BINS, (place + 1) / NUM_BINS, len(part), float(part[:, 0].mean()), float(part[:, 1].mean()))
        for place in range(NUM_BINS)
        if len(part := pairs[places == place])
    )


def _by_class(rows: Rows, task: Task) -> dict[str, list[bool]]:
    parts: dict[str, list[bool]] = defaultdict(list)
    for row in rows.values():
        if TASK_FACTS[task].tells == "class":
            parts[row.truth].append(row.predicted == row.truth)
        else:
            truths, told = _labels(row.truth), _labels(row.predicted)
            for name in {*row.probabilities, *truths}:
                parts[name].append((name in truths) == (name in told))
    return parts


def _answers(rows: Rows, task: Task) -> Iterator[tuple[float, bool]]:
    for row in rows.values():
        match TASK_FACTS[task].tells:
            case "class":
                yield row.probability, row.predicted == row.truth
            case "labels":
                truths = _labels(row.truth)
                yield from ((probability, name in truths) for name, probability in row.probabilities.items())


def _labels(cell: str) -> set[str]:
    return set(cell.split("|")) - {""}


def _accuracy(name: str, right: Iterable[bool]) -> Accuracy:
    told = list(right)
    return Accuracy(name, len(told), sum(told) / len(told), *wilson_interval(sum(told), len(told)))
