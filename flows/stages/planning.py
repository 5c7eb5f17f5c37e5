"""The plan stage: the works that a plan asks for on a data version, and which of them are left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from flows import plan as plans
from flows.errors import AskedWrongly
from flows.plan import Plan
from flows.records import DataVersion, Weights, Work
from flows.sample_files import check_turned
from flows.settings import Settings
from flows.stages.session import RetrainingSession
from flows.stages.values import WorkPlan
from flows.words import counted
from flows.work_folder import WorkFolder

_PLANNED: ContextVar[WorkPlan | None] = ContextVar("planned", default=None)


def make_work_plan(plan: Plan, version: DataVersion) -> WorkPlan:
    """The works of a plan on a data version, with the weights found and checked.

    Raises AskedWrongly if the data lacks what the plan needs, WeightsError if a weights file does not fit its backbone.
    """
    plans.check_data(plan, version)
    check_turned(version)
    variants = plans.expand(plan, version)
    weights = {name: find_weights(plan.weights_of(name), name) for name in dict.fromkeys(v.backbone for v in variants)}
    screenings = plans.screenings(plan, version, variants)
    works = tuple(
        Work(
            plans.work_key(v.variant_id, weights[v.backbone].digest, version.digest, screenings.get(v.variant_id, "")),
            v,
            weights[v.backbone],
            v.variant_id in screenings,
        )
        for v in variants
    )
    key = plans.retraining_key(plan, version, works)
    return WorkPlan(plan, version, works, plans.primary_metric(plan, version), key)


@contextlib.contextmanager
def planned(work_plan: WorkPlan | None) -> Iterator[None]:
    """Let a retraining in this block reuse this work plan, if it is for the same plan and data version."""
    token = _PLANNED.set(work_plan)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def plan_work(session: RetrainingSession, version: DataVersion) -> WorkPlan:
    """The works of the session's plan; says how many are left."""
    work_plan = _PLANNED.get()
    if work_plan is None or work_plan.plan != session.plan or _identity(work_plan.version) != _identity(version):
        work_plan = make_work_plan(session.plan, version)
    left = sum(not work_plan.is_done(session.settings, work) for work in work_plan.works)
    session.say(f"{counted(len(work_plan.works), 'variant')}, {left} left to train")
    return work_plan


def _identity(version: DataVersion) -> tuple[str, str, Path]:
    return version.digest, version.revision, version.data


def find_weights(named: str, backbone: str) -> Weights:
    """The first weights of a backbone: none, torchvision's ImageNet ones (downloaded once), or a file that fits it."""
    if named == "none":
        return Weights("none")
    from heads import backbones

    path = backbones.imagenet_weights(backbone) if named == "imagenet" else Path(named).absolute()
    return Weights(backbones.check_weights(backbone, path), path)


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
