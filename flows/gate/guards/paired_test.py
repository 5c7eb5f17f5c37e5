"""Whether the candidate reads the holdout better than its opponent, proven at the policy's level."""

from __future__ import annotations

from flows.gate.case import Case
from flows.gate.evidence import is_better
from flows.records import Finding


def paired_test(case: Case) -> Finding:
    """The paired test of the champion and the candidate, or of a constant answer and the candidate."""
    evidence = case.evidence
    assert not isinstance(evidence, str), "a case that cannot be tested was not admitted"
    figures = evidence.figures
    passed = is_better(figures["gain"], figures["p_value"], case.policy)
    return Finding("paired_test", passed, evidence.words, figures, evidence.limits)
