"""Bets on new samples: how certain they make it that challengers are better than the champion, however often one looks. Pure.

Each night's new samples are bet on with a challenger that was made before them, each sample once. If no challenger is better,
nobody gains by such bets: the chance that a stake of 1 ever grows to 1 / alpha is at most alpha (Ville 1939, "Étude critique de
la notion de collectif"), whatever is trained, how often, and with what knowledge of the past. So a reign has one account, for
challengers of all recipes, and needs no calendar. The bets are those of Waudby-Smith and Ramdas 2024, "Estimating means of
bounded random variables by betting", J. R. Statist. Soc. B 86:1-27.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.gate.clusters import clusters_of, num_clusters, totals
from flows.gate.evidence import Rows
from flows.records import ScoreTable
from heads.tasks.rows import Scored

# Shares of the stake that are bet on each difference, and how the stake of 1 is laid on them; half of it is held back.
BETS = np.array([0.0, 0.08, 0.16, 0.24, 0.36])
STAKES = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
# After each night this share of all that is left is laid out anew, as the stake was: else a reign of equal challengers would
# leave nothing to bet on a better one with (Herbster and Warmuth 1998, "Tracking the Best Expert", Machine Learning 32:151-178).
LAID_ANEW = 0.02

# What a sample adds to a measure that is a mean over samples, from 0 to 1.
VALUES: Mapping[str, Callable[[Scored], float]] = {
    "accuracy": lambda row: float(row.predicted == row.truth),
    # Rows of new samples keep the five likeliest classes.
    "top5": lambda row: float(row.truth in row.probabilities),
}

Values = NDArray[np.float64]


@dataclass(frozen=True)
class FreshAccount:
    """What was bet on before in a champion's reign: each night's tables of the challenger and of the champion, oldest first.

    `num_lost` nights' tables are gone. `num_looks` is how often the holdout was asked about challengers of this champion too.
    """

    nights: tuple[tuple[ScoreTable, ScoreTable], ...] = ()
    num_lost: int = 0
    num_looks: int = 0

    @property
    def has_begun(self) -> bool:
        """Whether there was a bet before in this reign."""
        return bool(self.nights or self.num_lost)


class Night(NamedTuple):
    """How the challenger's value differs from the champion's in each bet, from -1 to 1, and how many samples these are."""

    differences: Values
    num_samples: int

    @property
    def gain(self) -> float:
        """The mean difference."""
        return float(self.differences.mean())


def bets_of(challenger: Rows, champion: Rows, measure: str, groups: Mapping[str, str]) -> Night:
    """A night's bets, from both models' rows of the same samples: those of a group (by digest) are one bet, on their mean."""
    keys, value = sorted(challenger), VALUES[measure]
    differences = np.array([value(challenger[key]) - value(champion[key]) for key in keys])
    # Two labels of one image are one bet, too.
    clusters = clusters_of(keys, {digest: groups.get(digest, digest) for digest, _ in keys})
    if clusters is None:
        return Night(differences, len(keys))
    return Night(totals(differences, clusters) / np.bincount(clusters, minlength=num_clusters(clusters)), len(keys))


def log_wealths(nights: Iterable[Values]) -> Iterator[float]:
    """The logarithm of what a stake of 1 has become after each night, from its differences, oldest first."""
    laid = np.log(STAKES)
    for differences in nights:
        laid = laid + np.log1p(np.multiply.outer(BETS, differences)).sum(axis=1)
        total = float(np.logaddexp.reduce(laid))
        yield total
        laid = np.logaddexp(np.log1p(-LAID_ANEW) + laid, np.log(LAID_ANEW) + total + np.log(STAKES))


def is_proven(log_wealth: float, newest: Values, alpha: float) -> bool:
    """Whether the stake has grown to 1 / alpha, and the newest challenger is not behind the champion on its own night's."""
    return log_wealth >= -math.log(alpha) and float(newest.sum()) >= 0
