"""The guards that admit a case: if one of them does not pass, there is nothing to judge."""

from __future__ import annotations

from collections.abc import Set

from flows.errors import AskedWrongly
from flows.gate.case import NO_LABEL, Case, rows_of
from flows.records import Finding, ScoreTable

WITHDRAWN = "a person rolled this very model back or rejected it; it is not promoted again by itself"


def comparable(case: Case) -> Finding | None:
    """A refusal of a champion that lacks the target, predicts it as another task, or is the candidate itself; else None.

    Raises AskedWrongly if the two were scored on different samples or data versions.
    """
    refusal = _refusal(case, case.champion) if case.champion else None
    return Finding("comparable", False, refusal) if refusal else None


def not_withdrawn(case: Case) -> Finding | None:
    """A refusal of a model that a person rolled back; None for others."""
    return Finding("not_withdrawn", False, WITHDRAWN) if case.withdrawn else None


def testable(case: Case) -> Finding | None:
    """A refusal of a holdout without labels of the target, or of masks of which the two models count different values."""
    if not case.after:
        return Finding("testable", False, NO_LABEL.format(case.target))
    if case.fresh:
        return None  # bets are made on any sample
    return Finding("testable", False, case.evidence) if isinstance(case.evidence, str) else None


def _refusal(case: Case, champion: ScoreTable) -> str | None:
    name, target = case.champion_name, case.target
    after, before = (rows_of(table, target) for table in (case.candidate, champion))
    if after and not before:
        return f"{name} does not predict {target!r}, so the two cannot be compared; give this plan another name"
    task = champion.tasks.get(target, "classification")
    if after and task != case.task:
        return (
            f"{name} reads {target!r} as {task}, the candidate as {case.task}, so the two cannot be compared; "
            "give this plan another name"
        )
    _refuse_other_samples(case.candidate, champion, after.keys(), before.keys())
    return f"the candidate is the champion already ({name})" if case.candidate.bundle_digest == champion.bundle_digest else None


def _refuse_other_samples(
    candidate: ScoreTable, champion: ScoreTable, after: Set[tuple[str, str]], before: Set[tuple[str, str]]
) -> None:
    if candidate.data_version != champion.data_version:
        raise AskedWrongly(
            f"the candidate was scored on data version {candidate.data_version!r}, the champion on {champion.data_version!r}; "
            "score both on the same one"
        )
    if after != before:
        raise AskedWrongly(
            f"the candidate and the champion were scored on different samples ({len(after - before)} only by the candidate, "
            f"{len(before - after)} only by the champion); score both again on data version {candidate.data_version!r}"
        )
