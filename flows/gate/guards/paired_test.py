"""Whether the candidate is better than its opponent on the holdout, at the policy's level of significance."""

from __future__ import annotations

from flows.gate.case import Case
from flows.gate.evidence import is_better
from flows.records import Finding


def paired_test(case: Case) -> Finding:
    """Whether the candidate wins the paired test against the champion, or, without one, against a constant answer."""
    evidence = case.evidence
    assert not isinstance(evidence, str), "a case that cannot be tested was not admitted"
    figures = evidence.figures
    passed = is_better(figures["gain"], figures["p_value"], case.policy)
    return Finding("paired_test", passed, evidence.words, figures, evidence.limits)
