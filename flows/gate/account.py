"""How often a holdout may be asked about a champion's challengers, so that a year of equal ones promotes by luck within `alpha`.

One reign of a champion has one account. Its first look takes nearly all of it, by the exact McNemar test or the bootstrap. After
that the holdout is asked once a week, and not about one night's model but about the recipe: whether the mean of its last seven
challengers reads the samples better than the champion, by far more than chance gives. So the luck of one night's seed counts
for little, and 52 looks of so high a bar cost little. The shares were found by simulation, which
tests/benchmarks/promotion_year.py repeats with the functions of this file. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from flows.gate.clusters import Clusters, count_touched, error_of_mean, num_clusters
from flows.gate.evidence import Level
from flows.records import ScoreTable

# Of alpha, by the simulation: what the first look may cost, and each weekly one. The exact test has less slack the larger the
# holdout.
FIRST_SHARE, FIRST_SHARE_FROM_8000 = 0.89, 0.84
# A score test has no such slack.
FIRST_SHARE_OF_MARGIN = 0.5
# The tail of a normal beyond 3.2 standard errors, out of an alpha of 0.05. A number, since scipy.stats takes a second to load.
WEEKLY_SHARE = 0.013742758758316941
VERY_MANY = 8000
# Challengers of one recipe that are judged together, and days between two looks.
WINDOW, DAYS_BETWEEN_LOOKS = 7, 7.0
# A retraining that is scheduled each night begins now a little earlier, now a little later.
DAYS_TOLERATED = 0.25

# Of influence values, which are computed by small differences.
ROUNDING = 1e-6

Values = NDArray[np.float64]
Kind = Literal["first", "weekly", "none"]


@dataclass(frozen=True)
class Account:
    """What was asked before about challengers of this champion by this measure.

    `num_looks` were taken, the last `days_since_look` ago. `challengers` are the score tables of earlier challengers of the
    candidate's recipe, oldest first, at most six.
    """

    num_looks: int = 0
    days_since_look: float = math.inf
    challengers: tuple[ScoreTable, ...] = ()

    @property
    def next_look(self) -> Kind:
        """What may be asked about the candidate: of the first challenger all, weekly of seven together, else nothing."""
        if not self.num_looks:
            return "first"
        due = self.days_since_look >= DAYS_BETWEEN_LOOKS - DAYS_TOLERATED
        return "weekly" if due and len(self.challengers) + 1 >= WINDOW else "none"


class MeanLook(NamedTuple):
    """Some challengers' mean against the champion over n samples: its gain, the standard error of that, the newest one's gain.

    `num_units` are the clusters of the samples, or the samples where each is drawn by itself.
    """

    num_samples: int
    num_differing: int
    gain: float
    error: float
    newest_gain: float
    num_units: int

    @property
    def z(self) -> float:
        """The gain in standard errors; 0 without any spread."""
        return self.above(0.0) if self.error else 0.0

    def above(self, least: float) -> float:
        """How many standard errors the gain is above `least`; infinitely many without any spread."""
        distance = self.gain - least
        return distance / self.error if self.error else math.copysign(math.inf, distance)


def first_level(alpha: float, num_samples: int, margin: float | None = None) -> Level:
    """What the p-value of a reign's first challenger has to be below, in a test of a gain, or of a loss below a margin."""
    share = FIRST_SHARE if num_samples < VERY_MANY else FIRST_SHARE_FROM_8000
    value = alpha * (share if margin is None else FIRST_SHARE_OF_MARGIN)
    return Level(value, f"{value:.4g}, the first look's part of alpha {alpha:g}")


def least_z(alpha: float) -> float:
    """How many standard errors the mean of seven challengers has to be above the champion: 3.2 at alpha 0.05."""
    return float(scipy.stats.norm.isf(alpha * WEEKLY_SHARE))


def look_at_mean(challengers: Values, champion: Values, clusters: Clusters | None = None) -> MeanLook:
    """The gain of the mean of challengers (k, n), the newest last, over the champion (n or k, n), from what samples add.

    A sample on which an earlier challenger was not scored (NaN) counts with the mean of those that were. The error is that of
    samples taken one by one, or in clusters (n), which then also count in place of samples that differ.
    """
    differences = challengers - champion
    mean = np.nanmean(differences, axis=0)
    spread = float(mean.std(ddof=1)) if mean.size > 1 else 0.0
    error = error_of_mean(mean, clusters) if spread > ROUNDING else 0.0
    num_differing = count_touched(np.abs(mean) > ROUNDING, clusters)
    num_units = mean.size if clusters is None else num_clusters(clusters)
    return MeanLook(mean.size, num_differing, float(mean.mean()), error, float(differences[-1].mean()), num_units)


def chance_unseen(num_units: int, margin: float) -> float:
    """The chance that so many samples or clusters show nothing of a loss of `margin`, where all of it is on so large a share."""
    return float((1 - margin) ** num_units)


def least_units(alpha: float, margin: float) -> int:
    """So many samples or clusters show a loss of `margin` in a weekly look, wherever it lies."""
    return math.ceil(math.log(scipy.stats.norm.sf(least_z(alpha))) / math.log1p(-margin))


def is_proven(look: MeanLook, alpha: float, margin: float | None = None) -> bool:
    """Whether the recipe is better: its mean by far, on enough samples that are read differently, the newest not behind.

    With a margin, whether it is not worse by as much: a loss of all of it would be seen on these samples, the mean is far above
    it, and the newest too.
    """
    if margin is not None:
        seen = chance_unseen(look.num_units, margin) < scipy.stats.norm.sf(least_z(alpha))
        return bool(seen) and look.above(-margin) >= least_z(alpha) and look.newest_gain > -margin
    # Exchanging the two readers of a sample is as likely where they are equal (Fisher 1935), whatever the standard error says.
    enough = 2.0**-look.num_differing < scipy.stats.norm.sf(least_z(alpha))
    return enough and look.z >= least_z(alpha) and look.newest_gain >= -ROUNDING
