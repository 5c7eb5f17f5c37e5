"""The decision: whether the candidate becomes the champion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flows.gate.case import Case
from flows.gate.guards.table import ADMISSION, CHOSEN_GUARDS, GUARDS
from flows.records import Finding, Verdict


def decide(case: Case) -> Verdict:
    """Whether the candidate becomes the champion: every guard that blocks has to pass. Each gives a finding, in words.

    A first model must beat a constant answer; a later one must gain `min_gain` in the policy's measure and win the paired test
    on the measure's target. Of other guards the policy says which block and which only warn. The reasons are the findings'
    words, then their notes; a finding that only warns is called a warning. The figures are the paired test's: of classes
    `gain` is the paired difference of accuracies, `gain_low` to `gain_high` its 95 % interval, and `metric_gain` the difference
    in the plan's measure; of label sets and masks both are the same. A case that an admission guard refuses has that finding
    alone. Raises AskedWrongly as the guards do.
    """
    for guard in ADMISSION.values():
        if (finding := guard(case)) and not finding.passed:
            return Verdict(False, (finding.words,), {}, (finding,), case.policy.metric, case.recipe)
    findings = (*(finding for guard in GUARDS.values() if (finding := guard(case))), *_chosen(case))
    notes = (note for finding in findings for note in finding.notes)
    reasons = (*map(_words, findings), *notes)
    promoted = all(finding.passed for finding in findings if finding.blocks)
    superior = not promoted or case.is_superior
    return Verdict(promoted, reasons, findings[0].figures, findings, case.policy.metric, case.recipe, case.level_spent, superior)


def _chosen(case: Case) -> Iterator[Finding]:
    for name, guard in CHOSEN_GUARDS.items() if case.is_decided else ():
        severity = case.policy.guards.get(name, "off")
        if severity != "off" and (finding := guard(case)):
            yield replace(finding, blocks=severity == "block")


def _words(finding: Finding) -> str:
    return finding.words if finding.passed or finding.blocks else f"warning: {finding.words}"
