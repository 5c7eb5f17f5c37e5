"""The train stage: the works that are left, in one Ray job, with their MLflow runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from flows import cluster, dataset, job, tracking
from flows.records import FailedVariant, TrainResult
from flows.stages.feature_store import check_features, keep_in_bounds
from flows.stages.planning import Agenda, failures
from flows.stages.progress import showing_progress
from flows.stages.session import Desk


def train(desk: Desk, agenda: Agenda) -> TrainResult:
    """Every variant of the agenda, finished or failed, with its MLflow run; only what is left is trained, in one Ray job.

    Raises AskedWrongly where all of them failed.
    """
    left = {work.key for work in agenda.works if not agenda.is_done(desk.settings, work)}
    if left:
        check_features(desk.settings)
        cluster.check(desk.settings.ray_address, desk.settings.storage, desk.plan.workers.group())
    desk.tracker.repair()
    origin = _origin(desk, agenda)
    run_id = desk.start_run(agenda.key, origin)
    seconds, num_forwarded, flops_stored = 0.0, 0, 0
    if left:
        order = job.Job(
            kind="train",
            key=agenda.key,
            name=desk.plan.name,
            storage=desk.settings.storage,
            features=desk.settings.features,
            version=agenda.version,
            classes=agenda.classes,
            workers=desk.plan.workers.group(),
            works=agenda.works,
            screening=None if desk.plan.screening is None else job.Screening(desk.plan.screening, agenda.metric),
            tracking=job.Tracking(desk.settings.tracking, desk.settings.artifacts, desk.plan.name, run_id, vars(origin)),
        )
        with showing_progress(desk, agenda, order):
            outcome = run_job(desk, order)
        seconds, num_forwarded, flops_stored = outcome.seconds, outcome.num_forwarded, outcome.flops_stored
        keep_in_bounds(desk)
    from flows.pictures import draw_variant

    work_root = job.works_root(desk.settings.storage)
    draw = partial(draw_variant, work_root=work_root)
    runs = tracking.fill_in(desk.tracker, run_id, agenda.works, work_root, origin, draw)
    failed = _failed(desk, agenda, runs)
    gone = {one.key for one in failed}
    storage = desk.settings.storage
    found = [job.read_trained(storage, work, reused=work.key not in left) for work in agenda.works if work.key not in gone]
    variants = tuple(replace(variant, run_id=runs.get(variant.key)) for variant in found)
    return TrainResult(variants, num_forwarded, seconds, failed, flops_stored, run_id=run_id)


def _failed(desk: Desk, agenda: Agenda, runs: Mapping[str, str]) -> tuple[FailedVariant, ...]:
    """The variants that failed for good, told; raises AskedWrongly where there are no others."""
    reasons = failures(desk.settings, agenda)
    gone = [work for work in agenda.works if work.key in reasons]
    for work in gone:
        desk.say(f"Warning: {agenda.label(work)} failed and is left out of the ranking: {reasons[work.key]}")
    return tuple(FailedVariant(work.key, work.variant, reasons[work.key], runs.get(work.key)) for work in gone)


def _origin(desk: Desk, agenda: Agenda) -> tracking.Origin:
    return tracking.Origin(
        data_version=agenda.version.digest,
        data_revision=agenda.version.revision,
        data_source=str(agenda.version.data),
        git_commit=dataset.head_commit(desk.settings.workspace),
        flow_run_id=desk.flow_run_id or None,
    )


def run_job(desk: Desk, order: job.Job) -> job.JobOutcome:
    """The outcome of a job; one of the same key that still runs is joined, others of this name have no owner and are stopped."""
    ray = desk.cluster()
    for orphan in cluster.find_orphans(ray, desk.plan.name, job.jobs_root(order.storage), besides=order.folder.path):
        desk.say(f"Stopping {orphan.submission_id}, which a crash left behind")
        cluster.stop(ray, orphan.submission_id)
    submitted: list[str] = []
    try:
        return cluster.run_job(
            ray,
            job.begin(order),
            key=order.key,
            name=desk.plan.name,
            flow_run_id=desk.flow_run_id,
            on_start=submitted.append,
            say=desk.say,
        )
    except BaseException as error:
        if (
            submitted and not isinstance(error, Exception) and not cluster.death(ray)
        ):  # interrupted or cancelled: nothing may train on unseen
            with contextlib.suppress(Exception):
                cluster.stop(ray, submitted[-1])
        raise
