"""Whether the candidate gains as much in the plan's measure as the policy asks."""

from __future__ import annotations

from flows.gate.case import Case
from flows.records import Finding

# Measures that differ by less are equal but for rounding.
ROUNDING = 1e-12


def min_gain(case: Case) -> Finding | None:
    """The gain in the policy's measure against `min_gain`, or minus the margin; None without a champion, or while undecided."""
    evidence, policy = case.tested.evidence, case.policy
    if isinstance(evidence, str) or evidence.old is None or not case.is_decided:
        return None
    gain, least = evidence.value - evidence.old, policy.min_gain if case.margin is None else -case.margin
    passed = gain >= least - ROUNDING
    words = (
        f"holdout {policy.metric} {evidence.value:.3f} against {evidence.old:.3f} of {evidence.opponent}: {gain:+.3f}, "
        f"{'at least' if passed else 'less than'} {'min_gain ' if case.margin is None else ''}{least:g}"
    )
    return Finding("min_gain", passed, words, {"metric_gain": gain, "min_gain": least})
