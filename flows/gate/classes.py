"""Class labels: the exact McNemar test on accuracy, with its intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy

from flows.errors import AskedWrongly
from flows.gate.answers import Right, right
from flows.gate.clusters import (
    Clusters,
    count_touched,
    error_of_mean,
    group_figures,
    num_clusters,
    sampled_words,
    sign_test,
    totals,
    units_of,
)
from flows.gate.evidence import LEVEL, Evidence, Level, Policy, Rows, describe_test, one_sided
from flows.gate.unprovable import out_of_reach
from flows.records import ScoreTable


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two models on the same samples: which (N) the new one and the old one read rightly, and the samples' clusters, if any."""

    right: Right
    right_before: Right
    clusters: Clusters | None = None

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return len(self.right)

    @property
    def num_fixed(self) -> int:
        """How many samples only the new model reads rightly."""
        return int((self.right & ~self.right_before).sum())

    @property
    def num_broken(self) -> int:
        """How many samples only the old model reads rightly."""
        return int((self.right_before & ~self.right).sum())

    @property
    def gain(self) -> float:
        """The difference of the accuracies."""
        return (self.num_fixed - self.num_broken) / self.num_samples

    @property
    def test(self) -> str:
        """The name of the test that `p_value` is of."""
        return "exact McNemar" if self.clusters is None else "exact sign test of groups"

    @property
    def p_value(self) -> float:
        """The chance of such a gain or a greater one between models that are equally good."""
        if self.clusters is None:
            return one_sided(mcnemar(self.num_fixed, self.num_broken), self.gain)
        gains = self.right.astype(np.float64) - self.right_before
        return one_sided(sign_test(totals(gains, self.clusters).astype(np.int64)), self.gain)

    @property
    def best_p_value(self) -> float:
        """What a model without a single mistake would reach against the old one."""
        misread = count_touched(~self.right_before, self.clusters)
        return mcnemar(misread, 0) / 2 if misread else 1.0

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The 95 % interval of the gain: Tango's, or of clusters Student's, and Tango's where no cluster's total differs."""
        if self.clusters is None:
            return paired_interval(self.num_fixed, self.num_broken, self.num_samples)
        gains = self.right.astype(np.float64) - self.right_before
        if not totals(gains, self.clusters).any():
            return paired_interval(0, 0, num_clusters(self.clusters))
        error = error_of_mean(gains, self.clusters)
        reach = error * float(scipy.stats.t.ppf((1 + LEVEL) / 2, num_clusters(self.clusters) - 1))
        return max(-1.0, self.gain - reach), min(1.0, self.gain + reach)


def load_statistics() -> None:
    """Load what the tests compute with; without this the first of them does, which takes up to a second."""
    assert scipy.stats
    assert scipy.optimize


def mcnemar(num_fixed: int, num_broken: int) -> float:
    """The exact two-sided p-value that fixed and broken samples are equally likely (McNemar 1947, binomial form)."""
    discordant = num_fixed + num_broken
    return float(scipy.stats.binomtest(num_fixed, discordant, 0.5).pvalue) if discordant else 1.0


def wilson_interval(num_right: int, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    interval = scipy.stats.binomtest(num_right, num_samples).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def paired_score(num_fixed: int, num_broken: int, num_samples: int, difference: float) -> float:
    """How far two accuracies on the same samples are above a difference, in standard errors at that difference (Tango 1998).

    Also the test of Liu et al. 2002, Statist. Med. 21:231-245, that the new model is not worse by a margin: at minus the margin.
    """
    n = num_samples
    # The likelihood's best share of broken samples, given the difference.
    b = (2 * n - num_fixed + num_broken) * difference - num_fixed - num_broken
    share = (math.sqrt(max(0.0, b * b + 8 * n * num_broken * difference * (1 - difference))) - b) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    distance = num_fixed - num_broken - n * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def paired_interval(num_fixed: int, num_broken: int, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of the difference of two accuracies on the same samples (Tango 1998, Statist. Med. 17:891-908)."""
    n, z = num_samples, float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
    score = partial(paired_score, num_fixed, num_broken, n)
    middle, edge = (num_fixed - num_broken) / n, 1 - 1e-12
    low = scipy.optimize.brentq(lambda d: score(d) - z, -edge, middle) if middle > -edge and score(-edge) > z else -1.0
    high = scipy.optimize.brentq(lambda d: score(d) + z, middle, edge) if middle < edge and score(edge) < -z else 1.0
    return float(low), float(high)


def compare_classes(
    candidate: ScoreTable,
    champion: ScoreTable | None,
    after: Rows,
    before: Rows,
    policy: Policy,
    level: Level,
    *,
    majority: str,
    name: str,
    clusters: Clusters | None = None,
    num_repeated: int = 0,
    missing: Collection[str] = (),
) -> Evidence:
    """The evidence on accuracy against the champion, or, without one, against always answering `majority`.

    Samples in `clusters` (of the sorted rows) are exchanged cluster by cluster; `num_repeated` more do not count. Of `missing`
    classes there is no sample. Raises AskedWrongly if a table lacks the policy's measure.
    """
    value, old = _measure(candidate, policy.metric), _measure(champion, policy.metric) if champion else None
    if champion:
        pairs, opponent = _pairs(after, {key: row.predicted for key, row in before.items()}, clusters), name
    else:
        pairs, opponent = _pairs(after, dict.fromkeys(after, majority), clusters), f"always answering {majority!r}"
    figures = _figures(pairs, policy, level, value, old)
    best, misread = figures["best_p_value"], count_touched(~pairs.right_before, clusters)
    words = out_of_reach(
        opponent, misread, units_of(figures), f"p = {best:.3f}", level, missing=missing, is_constant=champion is None
    )
    limits = (words,) if best >= level.value else ()
    samples = sampled_words(pairs.num_samples, clusters, num_repeated)
    return Evidence(figures, _words(pairs, level, figures, samples, opponent), value, old, opponent, limits)


def _measure(table: ScoreTable, metric: str) -> float:
    if not math.isfinite(value := table.metrics.get(metric, math.nan)):
        raise AskedWrongly(f"the score table has no finite {metric!r}; it has: {', '.join(sorted(table.metrics)) or 'none'}")
    return value


def _pairs(after: Rows, before: Mapping[tuple[str, str], str], clusters: Clusters | None) -> Pairs:
    keys = sorted(after)
    return Pairs(right(after, keys), np.array([before[key] == after[key].truth for key in keys]), clusters)


def _figures(pairs: Pairs, policy: Policy, level: Level, value: float, old: float | None) -> dict[str, float]:
    n, num_right, num_right_before = pairs.num_samples, int(pairs.right.sum()), int(pairs.right_before.sum())
    (low, high), (gain_low, gain_high) = wilson_interval(num_right, n), pairs.gain_interval
    figures = {
        "num_samples": float(n),
        **group_figures(pairs.clusters),
        "num_fixed": float(pairs.num_fixed),
        "num_broken": float(pairs.num_broken),
        "accuracy": num_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_accuracy" if old is None else "champion_accuracy": num_right_before / n,
        "gain": pairs.gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "p_value": pairs.p_value,
        "best_p_value": pairs.best_p_value,
        "alpha": policy.alpha,
        "level": level.value,
        "min_gain": policy.min_gain,
        "metric": value,
    }
    return figures if old is None else {**figures, "champion_metric": old, "metric_gain": value - old}


def _words(pairs: Pairs, level: Level, figures: Mapping[str, float], samples: str, opponent: str) -> str:
    return (
        f"holdout accuracy {figures['accuracy']:.3f} ({figures['accuracy_low']:.3f} to {figures['accuracy_high']:.3f}) against "
        f"{pairs.right_before.mean():.3f} of {opponent}: {figures['gain']:+.3f} ({figures['gain_low']:+.3f} to "
        f"{figures['gain_high']:+.3f}) on {samples} ({pairs.num_fixed} fixed, "
        f"{pairs.num_broken} broken), {describe_test(pairs.test, figures['gain'], figures['p_value'], level)}"
    )
