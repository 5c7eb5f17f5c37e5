"""Whether the candidate gains as much in the plan's measure as the policy asks."""

from __future__ import annotations

from flows.gate.case import Case
from flows.records import Finding

# Measures that differ by less are equal but for rounding.
ROUNDING = 1e-12


def min_gain(case: Case) -> Finding | None:
    """Whether the gain in the policy's measure reaches `min_gain`; None without a champion."""
    evidence, policy = case.evidence, case.policy
    assert not isinstance(evidence, str), "a case that cannot be tested was not admitted"
    if evidence.old is None:
        return None
    gain = evidence.value - evidence.old
    passed = gain >= policy.min_gain - ROUNDING
    words = (
        f"holdout {policy.metric} {evidence.value:.3f} against {evidence.old:.3f} of {evidence.opponent}: {gain:+.3f}, "
        f"{'at least' if passed else 'less than'} min_gain {policy.min_gain:g}"
    )
    return Finding("min_gain", passed, words, {"metric_gain": gain, "min_gain": policy.min_gain})
