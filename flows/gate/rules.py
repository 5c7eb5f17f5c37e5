"""The decision: whether the candidate becomes the champion."""

from __future__ import annotations

from flows.gate.case import Case
from flows.gate.guards.table import ADMISSION, GUARDS
from flows.records import Verdict


def decide(case: Case) -> Verdict:
    """Whether the candidate becomes the champion: every guard has to pass. Each gives a finding, in words and with figures.

    A first model must beat a constant answer; a later one must gain `min_gain` in the policy's measure and win the paired test
    on the measure's target. The reasons are the findings' words, then their notes; the figures are the paired test's: of classes
    `gain` is the paired difference of accuracies, `gain_low` to `gain_high` its 95 % interval, and `metric_gain` the difference
    in the plan's measure; of label sets and masks both are the same. A case that an admission guard refuses has that finding
    alone. Raises AskedWrongly as the guards do.
    """
    for guard in ADMISSION.values():
        if (finding := guard(case)) and not finding.passed:
            return Verdict(False, (finding.words,), {}, (finding,), case.policy.metric, case.recipe)
    findings = tuple(finding for guard in GUARDS.values() if (finding := guard(case)))
    notes = (note for finding in findings for note in finding.notes)
    reasons = (*(finding.words for finding in findings), *notes)
    promoted = all(finding.passed for finding in findings)
    return Verdict(promoted, reasons, findings[0].figures, findings, case.policy.metric, case.recipe)
