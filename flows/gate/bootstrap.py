"""The paired bootstrap of the difference in a measure between two models on the same samples."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import scipy

from flows.gate.clusters import Clusters, num_clusters
from flows.gate.evidence import LEVEL
from flows.gate.measures import Measure, Table

NUM_RESAMPLES = 10_000
# Samples times resamples of a chunk: a few MB, which a processor's cache holds.
CHUNK_CELLS = 2**19
ROUNDING = 1e-12
# Of the spread of resamples.
IGNORED_BIAS = 0.25


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """The new model's measure, the old one's, the gain of the new over the old, and the two-sided p-value of no gain."""

    new: Interval
    old: float
    gain: Interval
    p_value: float


def resample(
    new: Measure,
    old: Measure,
    *,
    num_samples: int,
    num_differing: int,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
) -> Resampled:
    """The paired bootstrap of `new - old` over samples (Efron and Tibshirani 1993, "An Introduction to the Bootstrap").

    The p-value is twice the share of resampled differences at or beyond zero, with one added to both counts (Davison and
    Hinkley 1997, section 4.4), and intervals are percentile ones. Both are carried from the normal distribution to Student's t
    with n - 1 degrees of freedom, its spread widened by sqrt(n / (n - 1)): else percentiles are too narrow on few samples
    (Hesterberg 2015, The American Statistician 69:371-386, "expanded percentile interval"). A 95 % interval leaves out zero
    exactly if p < 0.05. With too few samples for such an interval, it is the whole range of a measure.

    Some measures are another on resamples, such as a mean over labels of which resamples leave out rare ones. Where the mean of
    resamples is beyond the estimate by more than a quarter of their spread (Efron and Tibshirani 1993, section 10.3), they are
    shifted by it; differences only towards no gain.

    With `clusters` these are drawn, each with all its samples, and counted in place of samples (Field and Welsh 2007, J. R.
    Statist. Soc. B 69:369-390).

    The models answer differently on `num_differing` samples, or clusters. If they are equally good, their answers on any of
    these may be exchanged, so no p-value is below 2 ** (1 - num_differing) (Fisher 1935). A resample on which the measure is not
    defined counts as one without a difference, which never helps a promotion. Values are NaN if the measure is not defined on
    the samples themselves.
    """
    ones = np.ones((num_samples, 1))
    value, before = float(new(ones)[0]), float(old(ones)[0])
    values, differences = draw_pairs(new, old, num_samples, seed, num_resamples, clusters)
    num_drawn = num_samples if clusters is None else num_clusters(clusters)
    gain = 0.0 if abs(value - before) < ROUNDING else value - before
    values, differences = values - _bias(values, value), _without_excess(differences, gain)
    p_value, least = _p_value(differences, num_drawn), least_p_value(num_differing)
    low, high = _percentiles(differences, num_drawn, -1.0, 1.0)
    if p_value < least >= 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    interval = _percentiles(values[np.isfinite(values)], num_drawn, 0.0, 1.0)
    return Resampled(_around(value, *interval), before, _around(gain, low, high), max(p_value, least))


def seed_of(*names: str) -> int:
    """The seed of random draws that depend on these names alone, so that a verdict repeats exactly."""
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:8], "big")


def basic_interval(value: float, draws: Table) -> Interval:
    """The basic 95 % bootstrap interval of an estimate, given it in each resample."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(2 * value - high), float(2 * value - low))


def least_p_value(num_differing: int) -> float:
    """The least two-sided p-value that a paired test can give if two models differ on this many samples."""
    return min(1.0, 2.0 ** (1 - num_differing))


def draw_pairs(
    new: Measure,
    old: Measure,
    num_samples: int,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
) -> tuple[Table, Table]:
    """The new model's measure and its difference to the old one's, in each resample of the samples or of their clusters."""
    num_drawn = num_samples if clusters is None else num_clusters(clusters)
    random = np.random.default_rng(seed)
    width = max(1, min(num_resamples, CHUNK_CELLS // num_samples))
    values, differences = np.empty(num_resamples), np.empty(num_resamples)
    for start in range(0, num_resamples, width):
        stop = min(start + width, num_resamples)
        num_columns = stop - start
        drawn = random.integers(0, num_drawn, (num_drawn, num_columns)) * num_columns + np.arange(num_columns)
        counts = np.bincount(drawn.ravel(), minlength=num_drawn * num_columns).reshape(num_drawn, num_columns)
        weights = (counts if clusters is None else counts[clusters]).astype(np.float64)
        values[start:stop] = new(weights)
        differences[start:stop] = values[start:stop] - old(weights)
    differences[~np.isfinite(differences) | (np.abs(differences) < ROUNDING)] = 0.0
    return values, differences


def _bias(draws: Table, value: float) -> float:
    """How far the mean of the draws lies from the estimate; 0 where that may be ignored."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return 0.0
    bias = float(defined.mean()) - value
    return bias if abs(bias) > IGNORED_BIAS * float(np.std(defined)) else 0.0


def _without_excess(differences: Table, gain: float) -> Table:
    """The differences, shifted by their bias if they are beyond the gain; those that are none stay none."""
    bias = _bias(differences, gain)
    return differences - bias * (differences != 0) if bias * gain > 0 else differences


def _p_value(differences: Table, num_drawn: int) -> float:
    if num_drawn == 1:
        return 1.0
    beyond = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    tail = min(0.5, (1 + beyond) / (len(differences) + 1))
    return float(2 * scipy.stats.t.cdf(scipy.stats.norm.ppf(tail) * math.sqrt((num_drawn - 1) / num_drawn), num_drawn - 1))


def _percentiles(draws: Table, num_drawn: int, least: float, most: float) -> tuple[float, float]:
    if num_drawn == 1:
        return least, most
    reach = math.sqrt(num_drawn / (num_drawn - 1)) * scipy.stats.t.ppf((1 + LEVEL) / 2, num_drawn - 1)
    # The greatest rank whose p-value is still below 1 - LEVEL.
    rank = math.ceil(float(scipy.stats.norm.cdf(-reach)) * (len(draws) + 1)) - 1
    if rank < 1:
        return least, most
    ordered = np.sort(draws)
    return max(least, float(ordered[rank - 1])), min(most, float(ordered[-rank]))


def _around(value: float, low: float, high: float) -> Interval:
    return Interval(value, min(low, value), max(high, value))
