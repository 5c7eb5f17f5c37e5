"""The decision: whether the candidate becomes the champion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flows.gate.case import Case
from flows.gate.guards.table import ADMISSION, GUARDS, SCORE_GUARDS, TRIAL_GUARDS, Guard
from flows.gate.trials import Trials
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
    findings = tuple(finding for guard in GUARDS.values() if (finding := guard(case)))
    if case.is_decided:
        findings += (*_called(SCORE_GUARDS, case), *_called(TRIAL_GUARDS, case))
    promoted = _let_pass(findings)
    superior = not promoted or case.is_superior
    figures, reasons = findings[0].figures, _reasons(findings)
    return Verdict(promoted, reasons, figures, findings, case.policy.metric, case.recipe, case.level_spent, superior)


def decide_by_trials(verdict: Verdict, case: Case, trials: Trials) -> Verdict:
    """The verdict on a case that was to promote, with what its trials tell: as `decide` gives it, at no second test."""
    assert verdict.promoted, "trials are of a candidate that could be promoted"
    findings = (*verdict.findings, *_called(TRIAL_GUARDS, replace(case, trials=trials)))
    promoted = _let_pass(findings)
    superior = not promoted or verdict.superior
    return replace(verdict, promoted=promoted, reasons=_reasons(findings), findings=findings, superior=superior)


def _let_pass(findings: Iterable[Finding]) -> bool:
    return all(finding.passed for finding in findings if finding.blocks)


def _reasons(findings: Sequence[Finding]) -> tuple[str, ...]:
    return (*map(_words, findings), *(note for finding in findings for note in finding.notes))


def _called(guards: Mapping[str, Guard], case: Case) -> Iterator[Finding]:
    for name, guard in guards.items():
        severity = case.policy.guards.get(name, "off")
        if severity != "off" and (finding := guard(case)):
            yield replace(finding, blocks=severity == "block")


def _words(finding: Finding) -> str:
    return finding.words if finding.passed or finding.blocks else f"warning: {finding.words}"
