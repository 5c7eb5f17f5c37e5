"""Label sets, masks and tags: the paired bootstrap of the plan's own measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from flows.errors import AskedWrongly
from flows.gate.answers import answer_most_pixels, answer_no_span, answer_shares, read_pair
from flows.gate.bootstrap import NUM_RESAMPLES, ROUNDING, Resampled, least_p_value, resample, seed_of
from flows.gate.clusters import Clusters, count_touched, group_figures, sampled_words, units_of
from flows.gate.evidence import Evidence, Level, Policy, Rows, describe_test, one_sided
from flows.gate.measures import Answers, is_ranked, measure_of, num_differing
from flows.gate.unprovable import lacked, out_of_reach
from flows.records import ScoreTable
from heads.catalogue import TASK_FACTS, Task, Tells

CONSTANT_ANSWERS: Mapping[Tells, Callable[[Sequence[str], Answers], tuple[Answers, str]]] = {
    "pixels": answer_most_pixels,
    "labels": answer_shares,
    "tags": answer_no_span,
}


def compare_resampled(
    candidate: ScoreTable,
    champion: ScoreTable | None,
    after: Rows,
    before: Rows,
    policy: Policy,
    level: Level,
    *,
    task: Task,
    name: str,
    clusters: Clusters | None = None,
    num_repeated: int = 0,
    missing: Collection[str] = (),
    num_resamples: int = NUM_RESAMPLES,
) -> Evidence | str:
    """The evidence on the policy's measure, computed from the rows, against the champion, or, without one, a constant answer.

    The constant answer of masks is the value that most of their pixels have; of label sets, every label's share of the samples
    as its probability, and as a set the labels that more than half of the samples have; of tags, that no word is in a span.
    Of `missing` classes there is no sample. Returns a reason, as a string, if the two cannot be compared. The random draws
    depend only on the two bundles, the data version and the measure, so that a verdict repeats exactly. Raises AskedWrongly if
    the measure is unknown or not defined on the samples.
    """
    measure = policy.metric.rpartition("/")[2]
    names, new, old = read_pair(task, after, before if champion else after)
    if champion:
        if other := _other_pixels(names, new, old, name):
            return other
        opponent = name
    else:
        old, opponent = CONSTANT_ANSWERS[TASK_FACTS[task].tells](names, new)
    differing = num_differing(new, old, ranked=is_ranked(task, measure), clusters=clusters)
    seed = seed_of(candidate.bundle_digest, champion.bundle_digest if champion else "", candidate.data_version, policy.metric)
    resampled = resample(
        measure_of(task, measure, new),
        measure_of(task, measure, old),
        num_samples=len(new.truths),
        num_differing=differing,
        seed=seed,
        num_resamples=num_resamples,
        clusters=clusters,
    )
    if not (math.isfinite(resampled.new.value) and math.isfinite(resampled.old)):
        raise AskedWrongly(
            f"{policy.metric} is not defined on the {len(new.truths)} samples of the holdout (auroc needs samples with a label "
            f"and without it, span_f1 a span, for instance); add test samples{lacked(missing)} or change promotion.metric"
        )
    is_imperfect = np.full(len(old.truths), True) if is_ranked(task, measure) else ~old.is_perfect
    # Of a measure that ranks any sample may be out of order, unless the opponent's is 1, which leaves nothing to gain.
    num_imperfect = 0 if resampled.old > 1 - ROUNDING else count_touched(is_imperfect, clusters)
    figures = _figures(resampled, policy, level, len(new.truths), differing, num_imperfect, first=champion is None)
    figures |= group_figures(clusters)
    best = f"no less than p = {figures['best_p_value']:.3f}"
    unproven = out_of_reach(
        opponent, num_imperfect, units_of(figures), best, level, missing=missing, is_constant=champion is None
    )
    limits = _limits(figures, level, unproven)
    samples = sampled_words(len(new.truths), clusters, num_repeated)
    words = _words(resampled, policy.metric, level, samples, opponent)
    return Evidence(figures, words, resampled.new.value, resampled.old if champion else None, opponent, limits)


def _other_pixels(names: tuple[str, ...], new: Answers, old: Answers, name: str) -> str | None:
    """Why two tables cover different pixels; None if they do not. Raises AskedWrongly if ignored values do not explain it."""
    if np.array_equal(new.truths, old.truths):
        return None
    here, there = new.truths.sum(axis=0) > 0, old.truths.sum(axis=0) > 0
    alone = [value for value, mine, theirs in zip(names, here, there, strict=True) if mine != theirs]
    shared = here & there
    if alone and np.array_equal(new.truths[:, shared], old.truths[:, shared]):
        return (
            f"the candidate and {name} count different values of the same masks (only one of them counts: {', '.join(alone)}), "
            "so the two cannot be compared; ignore the same values or give this plan another name"
        )
    num_other = int(np.count_nonzero((new.truths != old.truths).any(axis=1)))
    raise AskedWrongly(
        f"the candidate and the champion were scored on different pixels of {num_other} of {len(new.truths)} masks; score both "
        "again at the masks' own size"
    )


def _figures(
    resampled: Resampled, policy: Policy, level: Level, n: int, differing: int, num_imperfect: int, *, first: bool
) -> dict[str, float]:
    figures = {
        "num_samples": float(n),
        "num_differing": float(differing),
        "metric": resampled.new.value,
        "metric_low": resampled.new.low,
        "metric_high": resampled.new.high,
        "baseline_metric" if first else "champion_metric": resampled.old,
        "gain": resampled.gain.value,
        "gain_low": resampled.gain.low,
        "gain_high": resampled.gain.high,
        "p_value": one_sided(resampled.p_value, resampled.gain.value),
        # A model without a single mistake would reach no less against this opponent.
        "best_p_value": least_p_value(num_imperfect) / 2 if num_imperfect else 1.0,
        "alpha": policy.alpha,
        "level": level.value,
        "min_gain": policy.min_gain,
    }
    return figures if first else {**figures, "metric_gain": resampled.gain.value}


def _words(resampled: Resampled, metric: str, level: Level, samples: str, opponent: str) -> str:
    new, gain = resampled.new, resampled.gain
    return (
        f"holdout {metric} {new.value:.3f} ({new.low:.3f} to {new.high:.3f}) against {resampled.old:.3f} of {opponent}: "
        f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) on {samples}, "
        f"{describe_test('paired bootstrap', gain.value, one_sided(resampled.p_value, gain.value), level)}"
    )


def _limits(figures: Mapping[str, float], level: Level, unproven: str) -> tuple[str, ...]:
    if figures["best_p_value"] >= level.value:
        return (unproven,)
    differing = int(figures["num_differing"])
    least = least_p_value(differing) / 2
    if differing and least >= level.value:
        words = f"only {differing} of {units_of(figures)} are read differently"
        return (f"{words}: chance gives so few one direction with p = {least:.3f}",)
    return ()
