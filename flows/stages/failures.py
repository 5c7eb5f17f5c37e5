"""Why works failed for good, in words: such a work is done, and another try would only repeat it."""

from __future__ import annotations

from flows.errors import AskedWrongly
from flows.records import Work
from flows.settings import Settings
from flows.stages.values import WorkPlan
from flows.work_folder import WorkFolder


def why_failed(settings: Settings, work: Work) -> str | None:
    """Why a work failed for good, or None if it did not."""
    failure = WorkFolder.of(settings.root, work.key).read_failure()
    return failure.reason if failure else None


def failures(settings: Settings, work_plan: WorkPlan) -> dict[str, str]:
    """Why works failed for good, by work key. Raises AskedWrongly if all of them did."""
    by_work = {work.key: why_failed(settings, work) for work in work_plan.works}
    reasons = {key: reason for key, reason in by_work.items() if reason}
    if len(reasons) == len(work_plan.works):
        listed = "; ".join(f"{work_plan.label(work)}: {reasons[work.key]}" for work in work_plan.works)
        raise AskedWrongly(f"every variant of the plan failed, so nothing can be ranked: {listed}")
    return reasons
