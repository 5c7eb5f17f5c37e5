"""The jobs that stages send to the cluster: what all of them have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows import job

if TYPE_CHECKING:
    from flows.stages.session import RetrainingSession
    from flows.stages.values import WorkPlan


def new_job(session: RetrainingSession, work_plan: WorkPlan, kind: job.JobKind, key: str) -> job.Job:
    """A job of the plan's name and worker group on the data version, without works or bundles yet."""
    settings, workers = session.settings, session.plan.workers.group()
    name, version, classes = session.plan.name, work_plan.version, work_plan.classes
    return job.Job(kind, key, name, settings.root, version, classes, workers, features=settings.features)
