"""The two decisions: which variant is the candidate, and whether the evidence makes it the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flows.errors import AskedWrongly
from flows.gate.classes import compare_classes
from flows.gate.evidence import Evidence, Policy, Rows, is_better
from flows.gate.resampling import compare_resampled
from flows.records import ScoreTable, TrainedVariant, Verdict
from heads.catalogue import TASK_FACTS, Task

WITHDRAWN = "a person rolled this very model back; it is not promoted again by itself"


def choose(variants: Sequence[TrainedVariant], metric: str) -> TrainedVariant:
    """The candidate: the variant that is best by `val/<metric>`.

    Exact ties go to fewer trained parameters, then fewer parameters, then the plan's order. Raises AskedWrongly where no
    variant has a finite value.
    """
    name = f"val/{metric}"
    ranked = [variant for variant in variants if math.isfinite(variant.metrics.get(name, math.nan))]
    if not ranked:
        reasons = "; ".join(_missing(variant, name) for variant in variants) or "there is no variant"
        raise AskedWrongly(f"no variant can be ranked by {name!r}: {reasons}")
    return min(ranked, key=lambda v: (-v.metrics[name], v.num_trained_parameters, v.num_parameters))


def _missing(variant: TrainedVariant, name: str) -> str:
    if name in variant.metrics:
        return f"variant {variant.variant.variant_id}: {name} is {variant.metrics[name]} (diverged? try a lower learning_rate)"
    known = ", ".join(sorted(key for key in variant.metrics if key.startswith("val/"))) or "none"
    return f"variant {variant.variant.variant_id} has no {name}; it has: {known}"


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

    A first model must beat a constant answer; a later one must gain `min_gain` in the measure and win the paired test on the
    measure's target. `withdrawn`: a person rolled this very model back. Each distinct image counts once.

    Class labels are tested by exact McNemar on accuracy, and the constant is `majority[target]`: `gain` among the figures is
    the paired difference of accuracies, `gain_low` to `gain_high` its 95 % interval, `metric_gain` the difference in the plan's
    measure. Label sets and masks are tested by the paired bootstrap of the plan's measure itself, computed from the rows, and
    the constant is told by the holdout: `gain` and `metric_gain` are the same.

    A champion that does not predict the measure's target, or as another task, stays. Raises AskedWrongly on tables of other
    samples or another data version, and on a measure that cannot be told.
    """
    target = policy.metric.rpartition("/")[0]
    task: Task = candidate.tasks.get(target, "classification")
    before = _rows(champion, target) if champion else {}
    after = _rows(candidate, target)
    if reason := _refusal(candidate, champion, after, before, target, champion_name):
        return Verdict(False, (reason,))
    if withdrawn:
        return Verdict(False, (WITHDRAWN,))
    tells = TASK_FACTS[task].tells
    if tells == "pixels":
        before = {key: row for key, row in before.items() if row.pixels or after[key].pixels}
        after = {key: row for key, row in after.items() if row.pixels or key in before}
    if not after:
        return Verdict(False, (f"the holdout has no sample labelled for {target!r}: nothing can be shown; add test samples",))
    if tells == "class":
        constant = "" if champion else majority[target]
        evidence = compare_classes(candidate, champion, after, before, policy, majority=constant, name=champion_name)
        return _verdict(evidence, policy)
    found = compare_resampled(candidate, champion, after, before, policy, task=task, name=champion_name)
    return Verdict(False, (found,)) if isinstance(found, str) else _verdict(found, policy)


def _rows(table: ScoreTable, target: str) -> Rows:
    return {(row.digest, row.truth): row for row in table.rows if row.target == target}


def _refusal(
    candidate: ScoreTable, champion: ScoreTable | None, after: Rows, before: Rows, target: str, champion_name: str
) -> str | None:
    """Why the two are not compared at all; raises AskedWrongly where they were scored on other samples."""
    if champion is None:
        return None
    if after and not before:
        return f"{champion_name} does not predict {target!r}, so the two cannot be compared; give this plan another name"
    tasks = [table.tasks.get(target, "classification") for table in (candidate, champion)]
    if after and tasks[0] != tasks[1]:
        return (
            f"{champion_name} reads {target!r} as {tasks[1]}, the candidate as {tasks[0]}, so the two cannot be compared; "
            "give this plan another name"
        )
    _refuse_other_samples(candidate, champion, after, before)
    if candidate.bundle_digest == champion.bundle_digest:
        return f"the candidate is the champion already ({champion_name})"
    return None


def _refuse_other_samples(candidate: ScoreTable, champion: ScoreTable, after: Rows, before: Rows) -> None:
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


def _verdict(evidence: Evidence, policy: Policy) -> Verdict:
    figures = evidence.figures
    better = is_better(figures["gain"], figures["p_value"], policy)
    gained = evidence.old is None or evidence.value - evidence.old >= policy.min_gain - 1e-12
    reasons = (evidence.words, *_gain(evidence, policy, gained), *evidence.limits)
    return Verdict(better and gained, reasons, figures)


def _gain(evidence: Evidence, policy: Policy, gained: bool) -> tuple[str, ...]:
    value, old = evidence.value, evidence.old
    if old is None:
        return ()
    against = f"{value:.3f} against {old:.3f} of {evidence.opponent}: {value - old:+.3f}"
    return (f"holdout {policy.metric} {against}, {'at least' if gained else 'less than'} min_gain {policy.min_gain:g}",)
