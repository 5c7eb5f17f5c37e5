"""The train, score and promote stages."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flows import cluster, dataset, job, tracking
from flows.records import FailedVariant, ModelVersion, ScoreTable, TrainedVariant, TrainResult, Verdict
from flows.stages.feature_store import check_features, keep_in_bounds
from flows.stages.planning import Agenda, failures, majority_classes
from flows.stages.progress import showing_progress
from flows.stages.session import Desk


@dataclass(frozen=True)
class Scores:
    """The candidate and the champion on the same holdout; the champion's table is None for a first model."""

    candidate: TrainedVariant
    table: ScoreTable
    champion: ModelVersion | None
    champion_table: ScoreTable | None


@dataclass(frozen=True)
class Outcome:
    """The verdict, and the version it was spoken on (None where nothing was registered)."""

    verdict: Verdict
    model: ModelVersion | None


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
            outcome = _run(desk, order)
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


def score(desk: Desk, agenda: Agenda, trained: TrainResult) -> Scores:
    """The best variant on validation and the present champion, sample by sample on the holdout of this data version."""
    from flows import gate

    candidate = gate.choose(trained.variants, agenda.metric)
    champion = desk.registry.current(desk.plan.name).get("champion")
    target = agenda.metric.rpartition("/")[0]
    if not any(s.split == "test" and s.labels[target] is not None for s in agenda.version.samples):
        empty = ScoreTable("", agenda.version.digest, (), {})
        return Scores(candidate, empty, champion, None)
    bundles = [candidate.bundle, *([_bundle_of(desk, champion)] if champion else [])]
    desk.say("Scoring the candidate" + (f" and champion {champion.version}" if champion else "") + " on the holdout")
    tables = _score_bundles(desk, agenda, bundles)
    return Scores(candidate, tables[0], champion, tables[1] if champion else None)


def promote(desk: Desk, agenda: Agenda, scores: Scores) -> Outcome:
    """The gate's verdict, carried out: the candidate's version becomes champion, or stays challenger; the ledger keeps it."""
    from flows import gate

    name, candidate, champion = desk.plan.name, scores.candidate, scores.champion
    known = {version.tags.get("headstart.work_key"): version for version in desk.registry.versions(name)}
    withdrawn = candidate.key in known and known[candidate.key].tags.get("headstart.withdrawn") == "true"
    rules = desk.plan.promotion
    verdict = gate.decide(
        scores.table,
        scores.champion_table,
        gate.Policy(agenda.metric, rules.min_gain, rules.alpha),
        majority=majority_classes(agenda.version),
        withdrawn=withdrawn,
        champion_name=f"champion {champion.version}" if champion else "",
    )
    if champion and scores.champion_table and scores.table.bundle_digest == scores.champion_table.bundle_digest:
        return Outcome(verdict, champion)
    desk.say("Registering the candidate")
    version = desk.registry.register(
        name,
        bundle=candidate.bundle,
        run_id=str(candidate.run_id),
        work_key=candidate.key,
        variant_id=candidate.variant.variant_id,
        data_version=agenda.version.digest,
        git_commit=dataset.head_commit(desk.settings.workspace),
        metrics=scores.table.metrics,
    )
    if verdict.promoted:
        return Outcome(verdict, desk.registry.promote(name, version.version, verdict))
    desk.registry.record(name, version.version, verdict)
    return Outcome(verdict, desk.registry.set_challenger(name, version.version))


def _origin(desk: Desk, agenda: Agenda) -> tracking.Origin:
    return tracking.Origin(
        data_version=agenda.version.digest,
        data_revision=agenda.version.revision,
        data_source=str(agenda.version.data),
        git_commit=dataset.head_commit(desk.settings.workspace),
        flow_run_id=desk.flow_run_id or None,
    )


def _run(desk: Desk, order: job.Job) -> job.JobOutcome:
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


def _score_bundles(desk: Desk, agenda: Agenda, bundles: list[Path]) -> list[ScoreTable]:
    from heads.bundle import digest

    files = [job.scores_file(desk.settings.storage, digest(bundle), agenda.version.digest) for bundle in bundles]
    missing = {file.name: bundle for bundle, file in zip(bundles, files, strict=True) if not file.exists()}
    if missing:
        key = hashlib.sha256("".join(missing).encode()).hexdigest()[:16]
        order = job.Job(
            kind="score",
            key=key,
            name=desk.plan.name,
            storage=desk.settings.storage,
            version=agenda.version,
            classes=agenda.classes,
            workers=desk.plan.workers.group(),
            bundles=tuple(missing.values()),
        )
        _run(desk, order)
    return [job.read_scores(file) for file in files]


def _bundle_of(desk: Desk, version: ModelVersion) -> Path:
    """A registered version's bundle: where it was trained, else pulled once."""
    trained = job.WorkFolder.of(desk.settings.storage, version.tags.get("headstart.work_key", "-")).bundle
    if trained.is_dir():
        return trained
    pulled = desk.settings.storage / "pulled" / f"{version.name}-{version.version}"
    if not pulled.is_dir():
        desk.registry.pull(version.name, version.version, pulled)
    return pulled
