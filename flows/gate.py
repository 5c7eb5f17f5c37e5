"""The gate: which variant is the candidate, and whether the evidence makes it the champion. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from flows.errors import AskedWrongly
from flows.records import Scored, ScoreTable, TrainedVariant, Verdict

LEVEL = 0.95


@dataclass(frozen=True)
class Policy:
    """The rules of promotion: the measure `<target>/<measure>`, the smallest gain in it, and the level of the paired test."""

    metric: str
    min_gain: float = 0.0
    alpha: float = 0.05


@dataclass(frozen=True)
class Ranking:
    """Variants best first, and why others could not be ranked."""

    variants: tuple[TrainedVariant, ...]
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """Two readers of the same samples: how many each reads rightly, and how many only one of them does."""

    num_samples: int
    num_right: int
    num_right_before: int
    num_fixed: int
    num_broken: int


def rank(variants: Sequence[TrainedVariant], metric: str) -> Ranking:
    """The variants by `val/<metric>`; exact ties go to fewer trained parameters, then fewer parameters, then the plan's order.

    Raises AskedWrongly where no variant has a finite value.
    """
    name = f"val/{metric}"
    values = [v.metrics.get(name, math.nan) for v in variants]
    ranked = [v for v, value in zip(variants, values, strict=True) if math.isfinite(value)]
    excluded = tuple(_missing(v, name) for v, value in zip(variants, values, strict=True) if not math.isfinite(value))
    if not ranked:
        raise AskedWrongly(f"no variant can be ranked by {name!r}: {'; '.join(excluded) or 'there is no variant'}")
    ranked.sort(key=lambda v: (-v.metrics[name], v.num_trained_parameters, v.num_parameters))
    return Ranking(tuple(ranked), excluded)


def choose(variants: Sequence[TrainedVariant], metric: str) -> TrainedVariant:
    """The candidate: the first of `rank`."""
    return rank(variants, metric).variants[0]


def mcnemar(num_fixed: int, num_broken: int) -> float:
    """The exact two-sided p-value that fixed and broken samples are equally likely (McNemar 1947, binomial form)."""
    discordant = num_fixed + num_broken
    return float(binomtest(num_fixed, discordant, 0.5).pvalue) if discordant else 1.0


def wilson_interval(num_right: int, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    interval = binomtest(num_right, num_samples).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def paired_interval(num_fixed: int, num_broken: int, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of the difference of two accuracies on the same samples (Tango 1998, Statist. Med. 17:891-908)."""
    n, z = num_samples, float(norm.ppf((1 + LEVEL) / 2))

    def score(difference: float) -> float:
        # The likelihood's best share of broken samples, given the difference.
        b = (2 * n - num_fixed + num_broken) * difference - num_fixed - num_broken
        share = (math.sqrt(max(0.0, b * b + 8 * n * num_broken * difference * (1 - difference))) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        distance = num_fixed - num_broken - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0

    middle, edge = (num_fixed - num_broken) / n, 1 - 1e-12
    low = brentq(lambda d: score(d) - z, -edge, middle) if middle > -edge and score(-edge) > z else -1.0
    high = brentq(lambda d: score(d) + z, middle, edge) if middle < edge and score(edge) < -z else 1.0
    return float(low), float(high)


def decide(
    candidate: ScoreTable,
    champion: ScoreTable | None,
    policy: Policy,
    *,
    majority: Mapping[str, str],
    withdrawn: bool = False,
    champion_name: str = "the champion",
) -> Verdict:
    """Whether the candidate becomes the champion, with every reason in words and the figures behind them.

    A first model must beat always answering `majority[target]`; a later one must gain `min_gain` in the measure and win the
    paired test on the accuracy of the measure's target. `withdrawn`: a person rolled this very model back. Each distinct
    image counts once. Figures: `gain` is the paired difference of accuracies, `gain_low` to `gain_high` its 95 % interval,
    `metric_gain` the difference in the plan's measure. A champion that does not predict the measure's target stays. Raises
    AskedWrongly on tables of other samples or another data version.
    """
    target = policy.metric.rpartition("/")[0]
    before = _rows(champion, target) if champion else {}
    after = _rows(candidate, target)
    if champion:
        if after and not before:
            reason = f"{champion_name} does not predict {target!r}, so the two cannot be compared; give this plan another name"
            return Verdict(False, (reason,))
        _refuse_other_samples(candidate, champion, after, before)
        if candidate.bundle_digest == champion.bundle_digest:
            return Verdict(False, (f"the candidate is the champion already ({champion_name})",))
    if withdrawn:
        return Verdict(False, ("a person rolled this very model back; it is not promoted again by itself",))
    if not after:
        return Verdict(False, (f"the holdout has no sample labelled for {target!r}: nothing can be shown; add test samples",))
    value, old = _measure(candidate, policy.metric), _measure(champion, policy.metric) if champion else None
    if champion:
        pairs, name = _pairs(after, {key: row.predicted for key, row in before.items()}), champion_name
    else:
        pairs, name = _pairs(after, dict.fromkeys(after, majority[target])), f"always answering {majority[target]!r}"
    figures = _figures(pairs, policy, value, old)
    significant = figures["p_value"] < policy.alpha and pairs.num_fixed > pairs.num_broken
    gained = old is None or value - old >= policy.min_gain - 1e-12
    reasons = [_evidence(pairs, policy, figures, name, significant), *_gain(policy, value, old, name, gained)]
    if figures["best_p_value"] >= policy.alpha:
        reasons.append(_out_of_reach(pairs, policy, figures, name))
    return Verdict(significant and gained, tuple(reasons), figures)


def _missing(variant: TrainedVariant, name: str) -> str:
    if name in variant.metrics:
        return f"variant {variant.variant.variant_id}: {name} is {variant.metrics[name]} (diverged? try a lower learning_rate)"
    known = ", ".join(sorted(key for key in variant.metrics if key.startswith("val/"))) or "none"
    return f"variant {variant.variant.variant_id} has no {name}; it has: {known}"


def _rows(table: ScoreTable, target: str) -> dict[tuple[str, str], Scored]:
    return {(row.digest, row.truth): row for row in table.rows if row.target == target}


def _refuse_other_samples(
    candidate: ScoreTable, champion: ScoreTable, after: Mapping[tuple[str, str], Scored], before: Mapping[tuple[str, str], Scored]
) -> None:
    if candidate.data_version != champion.data_version:
        raise AskedWrongly(
            f"the candidate was scored on data version {candidate.data_version!r}, the champion on {champion.data_version!r}; "
            "score both on the same one"
        )
    if after.keys() != before.keys():
        raise AskedWrongly(
            f"the candidate and the champion were scored on different samples ({len(after.keys() - before.keys())} only by the "
            f"candidate, {len(before.keys() - after.keys())} only by the champion); score both again on data version "
            f"{candidate.data_version!r}"
        )


def _measure(table: ScoreTable, metric: str) -> float:
    if not math.isfinite(value := table.metrics.get(metric, math.nan)):
        raise AskedWrongly(f"the score table has no finite {metric!r}; it has: {', '.join(sorted(table.metrics)) or 'none'}")
    return value


def _pairs(after: Mapping[tuple[str, str], Scored], before: Mapping[tuple[str, str], str]) -> Pairs:
    right = {key for key, row in after.items() if row.predicted == row.truth}
    right_before = {key for key, row in after.items() if before[key] == row.truth}
    return Pairs(len(after), len(right), len(right_before), len(right - right_before), len(right_before - right))


def _figures(pairs: Pairs, policy: Policy, value: float, old: float | None) -> dict[str, float]:
    n = pairs.num_samples
    low, high = wilson_interval(pairs.num_right, n)
    gain_low, gain_high = paired_interval(pairs.num_fixed, pairs.num_broken, n)
    first = old is None
    figures = {
        "num_samples": float(n),
        "num_fixed": float(pairs.num_fixed),
        "num_broken": float(pairs.num_broken),
        "accuracy": pairs.num_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_accuracy" if first else "champion_accuracy": pairs.num_right_before / n,
        "gain": (pairs.num_right - pairs.num_right_before) / n,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "p_value": mcnemar(pairs.num_fixed, pairs.num_broken),
        # What a model without a single mistake would reach against this opponent.
        "best_p_value": mcnemar(n - pairs.num_right_before, 0),
        "alpha": policy.alpha,
        "min_gain": policy.min_gain,
        "metric": value,
    }
    return figures if old is None else {**figures, "champion_metric": old, "metric_gain": value - old}


def _evidence(pairs: Pairs, policy: Policy, figures: Mapping[str, float], name: str, significant: bool) -> str:
    n, p = pairs.num_samples, figures["p_value"]
    shown = f"= {p:.3f}" if p >= 0.001 else "< 0.001"
    if significant:
        outcome = f"below alpha {policy.alpha:g}"
    elif p < policy.alpha:
        outcome = f"below alpha {policy.alpha:g}, but for the worse"
    else:
        outcome = f"not below alpha {policy.alpha:g}"
    return (
        f"holdout accuracy {figures['accuracy']:.3f} ({figures['accuracy_low']:.3f} to {figures['accuracy_high']:.3f}) against "
        f"{pairs.num_right_before / n:.3f} of {name}: {figures['gain']:+.3f} ({figures['gain_low']:+.3f} to "
        f"{figures['gain_high']:+.3f}) on {n} samples ({pairs.num_fixed} fixed, {pairs.num_broken} broken), "
        f"exact McNemar p {shown}, {outcome}"
    )


def _gain(policy: Policy, value: float, old: float | None, name: str, gained: bool) -> list[str]:
    if old is None:
        return []
    against = f"{value:.3f} against {old:.3f} of {name}: {value - old:+.3f}"
    return [f"holdout {policy.metric} {against}, {'at least' if gained else 'less than'} min_gain {policy.min_gain:g}"]


def _out_of_reach(pairs: Pairs, policy: Policy, figures: Mapping[str, float], name: str) -> str:
    wrong = pairs.num_samples - pairs.num_right_before
    return (
        f"{name} misreads only {wrong} of {pairs.num_samples} samples: even a model without a mistake would reach "
        f"p = {figures['best_p_value']:.3f}, not below alpha {policy.alpha:g}; add test samples or raise alpha"
    )
