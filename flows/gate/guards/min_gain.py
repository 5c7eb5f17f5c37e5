"""Whether the candidate gains as much in the plan's measure as the policy asks."""

from __future__ import annotations

from flows.gate.case import Case
from flows.records import Finding

# Measures that differ by less are equal but for rounding.
ROUNDING = 1e-12


def min_gain(case: Case) -> Finding | None:
    """The gain in the policy's measure against its `min_gain`; None without a champion, or while the test is undecided."""
    evidence, policy = case.evidence, case.policy
    assert not isinstance(evidence, str), "a case that cannot be tested was not admitted"
    if evidence.old is None or not case.is_decided:
        return None
    gain = evidence.value - evidence.old
    passed = gain >= policy.min_gain - ROUNDING
    words = (
        f"holdout {policy.metric} {evidence.value:.3f} against {evidence.old:.3f} of {evidence.opponent}: {gain:+.3f}, "
        f"{'at least' if passed else 'less than'} min_gain {policy.min_gain:g}"
    )
    return Finding("min_gain", passed, words, {"metric_gain": gain, "min_gain": policy.min_gain})
