"""The score stage: the candidate and the champion on the same holdout, in one Ray job."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from flows import job
from flows.records import ModelVersion, ScoreTable, TrainResult
from flows.stages.account import anchor_of
from flows.stages.baseline import find_baseline
from flows.stages.jobs import new_job
from flows.stages.session import RetrainingSession
from flows.stages.values import Scores, WorkPlan
from flows.work_folder import WorkFolder


def score(session: RetrainingSession, work_plan: WorkPlan, trained: TrainResult) -> Scores:
    """Score the candidate, which validation chooses, and the champion on the holdout of this data version, sample by sample.

    Beside a first model the baseline's probe is scored, if there is one.
    """
    from flows import gate

    target = work_plan.metric.rpartition("/")[0]
    num_labels = sum(s.split == "val" and s.labels[target] is not None for s in work_plan.version.samples)
    candidate, why = gate.choose(trained.variants, work_plan.metric, serving_costs(trained), num_labels)
    session.say(f"Candidate: {why}")
    baseline = find_baseline(session.settings, work_plan)
    if settled := session.registry.settle(session.plan.name, besides=candidate.key):
        session.say(f"Ledger: {settled.reasons[0]}")
    champion = session.registry.current(session.plan.name).get("champion")
    if not any(s.split == "test" and s.labels[target] is not None for s in work_plan.version.samples):
        empty = ScoreTable("", work_plan.version.digest, (), {})
        return Scores(candidate, empty, champion, None, why=why, baseline=baseline)
    anchor = find_anchor(session, work_plan.metric, champion)
    bundles = [candidate.bundle, *(bundle_of(session, version) for version in (champion, anchor) if version)]
    beside = f"champion {champion.version}" if champion else ""
    if champion is None and baseline.bundle and session.plan.promotion.guards.baseline != "off":
        bundles.append(baseline.bundle)
        beside = f"the {baseline.label}"
    session.say("Scoring the candidate" + (f" and {beside}" if beside else "") + " on the holdout")
    table, *others = _score_bundles(session, work_plan, bundles)
    champion_table, anchor_table = others[0] if champion else None, others[1] if anchor else None
    baseline_table = others[0] if others and not champion else None
    return Scores(candidate, table, champion, champion_table, anchor, anchor_table, why, baseline, baseline_table)


def serving_costs(trained: TrainResult) -> dict[str, int]:
    """The multiply-adds of a sample's way through each variant's backbone, by its key; heads are little beside it."""
    from heads.data.modalities import preparation_of
    from heads.trunks.pricing import forward_multiply_adds

    variants = {one.key: one.variant for one in trained.variants}
    return {
        key: forward_multiply_adds(variant.backbone, preparation_of(variant.backbone).size_of(variant.fit))
        for key, variant in variants.items()
    }


def find_anchor(session: RetrainingSession, metric: str, champion: ModelVersion | None) -> ModelVersion | None:
    """The version from which losses are counted, None if it is the champion, or the plan has no margin."""
    if champion is None or session.plan.promotion.margin is None:
        return None
    name = session.plan.name
    versions = {version.version: version for version in session.registry.versions(name)}
    anchor = anchor_of(session.registry.history(name), versions, champion, metric)
    return anchor if anchor.version != champion.version else None


def _score_bundles(session: RetrainingSession, work_plan: WorkPlan, bundles: list[Path]) -> list[ScoreTable]:
    from heads.bundle import digest

    files = [job.scores_file(session.settings.storage, digest(bundle), work_plan.version.digest) for bundle in bundles]
    missing = {file.name: bundle for bundle, file in zip(bundles, files, strict=True) if not file.exists()}
    if missing:
        key = hashlib.sha256("".join(missing).encode()).hexdigest()[:16]
        made = new_job(session, work_plan, "score", key)
        session.run_job(replace(made, bundles=tuple(missing.values())))
    return [job.read_scores(file) for file in files]


def bundle_of(session: RetrainingSession, version: ModelVersion) -> Path:
    """The bundle of a registered version: in its work's folder, else pulled once from the registry."""
    trained = WorkFolder.of(session.settings.storage, version.tags.get("headstart.work_key", "-")).bundle
    if trained.is_dir():
        return trained
    pulled = session.settings.storage / "pulled" / f"{version.name}-{version.version}"
    if not pulled.is_dir():
        session.registry.pull(version.name, version.version, pulled)
    return pulled
