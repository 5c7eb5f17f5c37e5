"""The train stage: one Ray job trains the works that are left; each work has its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from threading import Event

from flows import cluster, dataset, job, tracking
from flows.places import Place
from flows.records import FailedVariant, TrainResult
from flows.stages.background.loading import loading_ahead
from flows.stages.baseline import baseline_work, counted_key
from flows.stages.driver_training import trains_in_driver
from flows.stages.failures import failures
from flows.stages.feature_store import check_features, keep_in_bounds
from flows.stages.jobs import new_job
from flows.stages.progress import showing_progress
from flows.stages.session import RetrainingSession
from flows.stages.values import WorkPlan
from flows.work_folder import read_trained, works_root


def train(session: RetrainingSession, work_plan: WorkPlan) -> TrainResult:
    """Train the works that are left, in one Ray job; return every variant of the work plan, finished or failed.

    Raises AskedWrongly if all of them failed.
    """
    left = [work for work in work_plan.works if not work_plan.is_done(session.settings, work)]
    if left:
        check_features(session.settings)
        cluster.check(session.settings.ray_address, session.settings.storage, session.plan.workers.group())
    session.tracker.repair()
    origin = _origin(session, work_plan)
    run_id = session.start_run(work_plan.key, origin)
    outcome = job.JobOutcome()
    if left:
        training_job = replace(
            new_job(session, work_plan, "train", work_plan.key),
            works=work_plan.works,
            baseline=baseline_work(work_plan),
            counted=counted_key(work_plan),
            target=work_plan.target,
            in_driver=trains_in_driver(session.settings, work_plan, left),
            screening=None if session.plan.screening is None else job.Screening(session.plan.screening, work_plan.metric),
            tracking=job.Tracking(session.settings.tracking, session.settings.artifacts, session.plan.name, run_id, vars(origin)),
        )
        with showing_progress(session, work_plan, training_job), loading_ahead():
            outcome = session.run_job(training_job)
        keep_in_bounds(session)
    root = session.settings.root
    works = works_root(root)
    variant_runs = tracking.VariantRuns(session.tracker, run_id, work_plan.works, works, origin)
    runs = variant_runs.start()
    tracker = session.new_tracker()
    # Here, not in the thread: connecting sets filters of warnings, which are the process's.
    tracker.connect()
    session.log_beside(partial(_log, replace(variant_runs, tracker=tracker), works))
    failed = _failed(session, work_plan, runs)
    failed_keys = {variant.key for variant in failed}
    finished = [work for work in work_plan.works if work.key not in failed_keys]
    new = {work.key for work in left}
    trained = [read_trained(root, work, reused=work.key not in new) for work in finished]
    variants = tuple(replace(variant, run_id=runs.get(variant.key)) for variant in trained)
    return TrainResult(
        variants, outcome.num_forwarded, outcome.seconds, failed, outcome.flops_stored, outcome.num_fetched, run_id=run_id
    )


def _log(runs: tracking.VariantRuns, works: Place, stop: Event) -> None:
    """Log what MLflow lacks of the works, with their pictures."""
    from flows.pictures import draw_variant

    runs.fill_in(partial(draw_variant, works=works), stop)


def _failed(session: RetrainingSession, work_plan: WorkPlan, runs: Mapping[str, str]) -> tuple[FailedVariant, ...]:
    """The variants that failed for good, with a warning for each. Raises AskedWrongly if there are no others."""
    reasons = failures(session.settings, work_plan)
    failed = [work for work in work_plan.works if work.key in reasons]
    for work in failed:
        session.say(f"Warning: {work_plan.label(work)} failed and is left out of the ranking: {reasons[work.key]}")
    return tuple(FailedVariant(work.key, work.variant, reasons[work.key], runs.get(work.key)) for work in failed)


def _origin(session: RetrainingSession, work_plan: WorkPlan) -> tracking.Origin:
    return tracking.Origin(
        data_version=work_plan.version.digest,
        data_revision=work_plan.version.revision,
        data_source=str(work_plan.version.data),
        git_commit=dataset.head_commit(session.settings.workspace),
        flow_run_id=session.flow_run_id or None,
    )
