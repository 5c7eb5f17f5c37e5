"""Class labels: the exact McNemar test on accuracy, with its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from flows.errors import AskedWrongly
from flows.gate.evidence import LEVEL, Evidence, Level, Policy, Rows, describe_test, one_sided
from flows.records import ScoreTable


@dataclass(frozen=True)
class Pairs:
    """Two models on the same samples: how many each gets right, and how many only the new (fixed) or the old one (broken)."""

    num_samples: int
    num_right: int
    num_right_before: int
    num_fixed: int
    num_broken: int


def mcnemar(num_fixed: int, num_broken: int) -> float:
    """The exact two-sided p-value that fixed and broken samples are equally likely (McNemar 1947, binomial form)."""
    discordant = num_fixed + num_broken
    return float(binomtest(num_fixed, discordant, 0.5).pvalue) if discordant else 1.0


def wilson_interval(num_right: int, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    interval = binomtest(num_right, num_samples).proportion_ci(LEVEL, "wilson")
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
    n, z = num_samples, float(norm.ppf((1 + LEVEL) / 2))
    score = partial(paired_score, num_fixed, num_broken, n)
    middle, edge = (num_fixed - num_broken) / n, 1 - 1e-12
    low = brentq(lambda d: score(d) - z, -edge, middle) if middle > -edge and score(-edge) > z else -1.0
    high = brentq(lambda d: score(d) + z, middle, edge) if middle < edge and score(edge) < -z else 1.0
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
) -> Evidence:
    """The evidence on accuracy against the champion, or, without one, against always answering `majority`.

    Raises AskedWrongly if a table lacks the policy's measure.
    """
    value, old = _measure(candidate, policy.metric), _measure(champion, policy.metric) if champion else None
    if champion:
        pairs, opponent = _pairs(after, {key: row.predicted for key, row in before.items()}), name
    else:
        pairs, opponent = _pairs(after, dict.fromkeys(after, majority)), f"always answering {majority!r}"
    figures = _figures(pairs, policy, level, value, old)
    limits = (_out_of_reach(pairs, level, figures, opponent),) if figures["best_p_value"] >= level.value else ()
    return Evidence(figures, _words(pairs, level, figures, opponent), value, old, opponent, limits)


def _measure(table: ScoreTable, metric: str) -> float:
    if not math.isfinite(value := table.metrics.get(metric, math.nan)):
        raise AskedWrongly(f"the score table has no finite {metric!r}; it has: {', '.join(sorted(table.metrics)) or 'none'}")
    return value


def _pairs(after: Rows, before: Mapping[tuple[str, str], str]) -> Pairs:
    right = {key for key, row in after.items() if row.predicted == row.truth}
    right_before = {key for key, row in after.items() if before[key] == row.truth}
    return Pairs(len(after), len(right), len(right_before), len(right - right_before), len(right_before - right))


def _figures(pairs: Pairs, policy: Policy, level: Level, value: float, old: float | None) -> dict[str, float]:
    n = pairs.num_samples
    low, high = wilson_interval(pairs.num_right, n)
    gain_low, gain_high = paired_interval(pairs.num_fixed, pairs.num_broken, n)
    first, gain = old is None, (pairs.num_right - pairs.num_right_before) / n
    figures = {
        "num_samples": float(n),
        "num_fixed": float(pairs.num_fixed),
        "num_broken": float(pairs.num_broken),
        "accuracy": pairs.num_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_accuracy" if first else "champion_accuracy": pairs.num_right_before / n,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "p_value": one_sided(mcnemar(pairs.num_fixed, pairs.num_broken), gain),
        # What a model without a single mistake would reach against this opponent.
        "best_p_value": mcnemar(n - pairs.num_right_before, 0) / 2,
        "alpha": policy.alpha,
        "level": level.value,
        "min_gain": policy.min_gain,
        "metric": value,
    }
    return figures if old is None else {**figures, "champion_metric": old, "metric_gain": value - old}


def _words(pairs: Pairs, level: Level, figures: Mapping[str, float], opponent: str) -> str:
    n = pairs.num_samples
    return (
        f"holdout accuracy {figures['accuracy']:.3f} ({figures['accuracy_low']:.3f} to {figures['accuracy_high']:.3f}) against "
        f"{pairs.num_right_before / n:.3f} of {opponent}: {figures['gain']:+.3f} ({figures['gain_low']:+.3f} to "
        f"{figures['gain_high']:+.3f}) on {n} samples ({pairs.num_fixed} fixed, {pairs.num_broken} broken), "
        f"{describe_test('exact McNemar', figures['gain'], figures['p_value'], level)}"
    )


def _out_of_reach(pairs: Pairs, level: Level, figures: Mapping[str, float], opponent: str) -> str:
    wrong = pairs.num_samples - pairs.num_right_before
    return (
        f"{opponent} misreads only {wrong} of {pairs.num_samples} samples: even a model without a mistake would reach "
        f"p = {figures['best_p_value']:.3f}, not below {level.words}; add test samples or raise alpha"
    )
