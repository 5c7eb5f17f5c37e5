"""The end of a retraining: its report, made, kept, and found again when the same retraining is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import nan

from flows import tracking
from flows.files import read_value
from flows.places import StoredFile, open_place
from flows.plan import Plan, describe_variants
from flows.records import TrainResult
from flows.settings import Settings
from flows.stages.failures import failures
from flows.stages.planning import make_work_plan
from flows.stages.reporting.flips import flip_pictures
from flows.stages.reporting.report import (
    Counts,
    Report,
    ReportedBaseline,
    ReportedFailure,
    ReportedModel,
    ReportedVariant,
    read_report,
    with_pages,
    write_report,
)
from flows.stages.reporting.report_text import leaderboard
from flows.stages.reporting.version_card import keep_card
from flows.stages.session import RetrainingSession, open_registry
from flows.stages.values import PromotionResult, Scores, WorkPlan


def close(
    session: RetrainingSession,
    work_plan: WorkPlan,
    trained: TrainResult,
    scores: Scores,
    promotion: PromotionResult,
    seconds: Mapping[str, float],
) -> Report:
    """Make the report, end the parent MLflow run with it, and keep it for the next time the same is asked."""
    from flows.pictures import leaderboard as draw_leaderboard

    report = make_report(work_plan, trained, scores, promotion, seconds)
    report = replace(report, run_id=trained.run_id, experiment_id=session.tracker.connect())
    report = with_pages(report, session.settings.tracking)
    rows = leaderboard(report)
    counts = {f"counts/{name}": float(value) for name, value in asdict(report.counts).items()}
    measures = {name: float(value) for name, value in report.holdout.items()} | counts
    plain = report.baseline
    measures |= {f"baseline/{name}": value for name, value in plain.metrics.items()} if plain else {}
    names = [str(row["variant"]) for row in rows]
    values = [float(value) if isinstance(value := row[work_plan.metric], int | float) else nan for row in rows]
    chosen = next(i for i, row in enumerate(rows) if str(row["state"]).startswith("candidate"))
    pictures = {"leaderboard.png": draw_leaderboard(names, values, work_plan.metric, chosen)}
    pictures |= flip_pictures(work_plan, promotion.judged or scores, promotion.verdict)
    pictures |= keep_card(session, work_plan, scores, promotion)
    session.tracker.close_retraining(
        trained.run_id,
        "FINISHED",
        leaderboard=rows,
        verdict=promotion.verdict,
        metrics=measures,
        pictures=pictures,
        baseline=plain.label if plain else "",
    )
    write_report(_file(session.settings, work_plan), report)
    return report


@dataclass(frozen=True)
class Known:
    """A retraining before anything is started: its work plan, and its kept report if nothing is left to do."""

    work_plan: WorkPlan
    report: Report | None


def look_up(settings: Settings, plan: Plan) -> Known:
    """The work plan of a plan on the workspace's data version, and the kept report if nothing is left to do.

    Raises what `make_work_plan` and `failures` raise, and Unreachable if MLflow does not answer.
    """
    from flows import dataset

    started = time.monotonic()
    tracking.reach(settings.tracking, settings.artifacts)
    work_plan = make_work_plan(plan, dataset.read_version(settings.workspace), settings)
    failures(settings, work_plan)
    report = recall(settings, work_plan)
    return Known(work_plan, report and replace(report, seconds={"total": round(time.monotonic() - started, 2)}))


def recall(settings: Settings, work_plan: WorkPlan) -> Report | None:
    """The kept report of this work plan, or None if something is left to do.

    Nothing is left when every variant is trained, the same rules have judged them, and the champion of then is still the
    champion. The report's `seconds` are empty.
    """
    kept = read_report(_file(settings, work_plan))
    if kept is None or not all(work_plan.is_done(settings, work) for work in work_plan.works):
        return None
    champion = open_registry(settings).current(work_plan.plan.name).get("champion")
    if (champion.version if champion else None) != kept.champion:
        return None
    report = replace(
        kept,
        variants=tuple(replace(variant, reused=True) for variant in kept.variants),
        counts=Counts(samples=kept.counts.samples, variants_reused=len(kept.variants)),
        seconds={},
    )
    return with_pages(report, settings.tracking)


def _file(settings: Settings, work_plan: WorkPlan) -> StoredFile:
    return StoredFile(open_place(settings.root).within("retrainings"), f"{work_plan.key}.json")


def make_report(
    work_plan: WorkPlan, trained: TrainResult, scores: Scores, promotion: PromotionResult, seconds: Mapping[str, float]
) -> Report:
    """The report of a retraining without its MLflow run and pages; `seconds` are the stages' wall seconds."""
    model, judged = promotion.model, promotion.judged
    known = [*([model] if model else []), *([judged.version] if judged else [])]
    champion = next((version for version in known if "champion" in version.aliases), scores.champion)
    rows = {row.variant_id: vars(row) for row in describe_variants([work.variant for work in work_plan.works])}
    return Report(
        name=work_plan.plan.name,
        key=work_plan.key,
        metric=work_plan.metric,
        tasks={head.target: head.task for head in work_plan.works[0].variant.heads},
        data_version=work_plan.version.digest,
        variants=tuple(read_value(ReportedVariant, rows[one.variant.variant_id] | vars(one)) for one in trained.variants),
        failed=tuple(read_value(ReportedFailure, rows[one.variant.variant_id] | vars(one)) for one in trained.failed),
        candidate=scores.candidate.variant.variant_id,
        why=scores.why,
        baseline=read_value(ReportedBaseline, vars(scores.baseline)) if scores.baseline else None,
        other_baselines=tuple(read_value(ReportedBaseline, vars(one)) for one in scores.baselines[1:]),
        holdout=scores.told(promotion.on_candidate),
        verdict=promotion.verdict,
        judged=judged.version.version if judged else None,
        model=ReportedModel(model.name, model.version, model.aliases) if model else None,
        champion=champion.version if champion else None,
        counts=_count(work_plan, trained),
        seconds=_seconds(seconds, trained),
    )


def _seconds(stages: Mapping[str, float], trained: TrainResult) -> dict[str, float]:
    """The seconds of every stage; `train` covers its batches, and `train_around` the start and the records around them."""
    whole = stages.get("train", trained.seconds)
    # A job that was joined had begun before this retraining did.
    batches = min(trained.seconds, whole)
    seconds = {**stages, "train": batches, "train_around": round(whole - batches, 2)}
    last = {name: seconds.pop(name) for name in ("other", "total") if name in seconds}
    return seconds | last


def _count(work_plan: WorkPlan, trained: TrainResult) -> Counts:
    new = [variant for variant in trained.variants if not variant.reused]
    done = trained.flops_stored + sum(variant.flops for variant in new)
    return Counts(
        samples=len(work_plan.version.samples),
        trunk_forwards=trained.num_forwarded,
        features_read=sum(variant.num_features_read for variant in new),
        flops_done=done,
        flops_saved=sum(variant.flops_alone for variant in new) - done,
        variants_trained=len(new),
        variants_reused=len(trained.variants) - len(new),
        samples_fetched=trained.num_fetched,
    )
