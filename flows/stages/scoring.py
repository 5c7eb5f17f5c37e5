"""The score stage: the candidate and the champion on the same holdout, in one Ray job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from flows import job
from flows.errors import AskedWrongly
from flows.kept import keep_here
from flows.places import open_place
from flows.records import ModelVersion, ScoreTable, TrainResult
from flows.stages.account import anchor_of
from flows.stages.baseline import find_baseline
from flows.stages.jobs import new_job
from flows.stages.session import RetrainingSession
from flows.stages.values import Scores, WorkPlan
from flows.work_folder import bundle_name


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
    bundle = _fetch_bundle(session, bundle_name(candidate.key)).path
    if not any(s.split == "test" and s.labels[target] is not None for s in work_plan.version.samples):
        empty = ScoreTable("", work_plan.version.digest, (), {})
        return Scores(candidate, empty, champion, None, why=why, baseline=baseline, bundle=bundle)
    anchor = find_anchor(session, work_plan.metric, champion)
    bundles = [StoredBundle(bundle_name(candidate.key), bundle)]
    bundles += [bundle_of(session, version) for version in (champion, anchor) if version]
    beside = f"champion {champion.version}" if champion else ""
    if champion is None and baseline.bundle and session.plan.promotion.guards.baseline != "off":
        bundles.append(_fetch_bundle(session, baseline.bundle))
        beside = f"the {baseline.label}"
    session.say("Scoring the candidate" + (f" and {beside}" if beside else "") + " on the holdout")
    table, *others = _score_bundles(session, work_plan, bundles)
    champion_table, anchor_table = others[0] if champion else None, others[1] if anchor else None
    baseline_table = others[0] if others and not champion else None
    return Scores(candidate, table, champion, champion_table, anchor, anchor_table, why, baseline, baseline_table, bundle)


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


@dataclass(frozen=True)
class StoredBundle:
    """A bundle by its name below the storage root, for jobs, and by its folder on this machine."""

    name: str
    path: Path


def of_candidate(scores: Scores) -> StoredBundle:
    """The candidate's bundle."""
    return StoredBundle(bundle_name(scores.candidate.key), scores.bundle)


def _fetch_bundle(session: RetrainingSession, name: str) -> StoredBundle:
    place = open_place(session.settings.root).within(name)
    bundle = keep_here(place)
    if bundle is None:
        raise AskedWrongly(f"{place.address} is gone: remove what lies beside it, so that the next retraining makes it again")
    return StoredBundle(name, bundle)


def _score_bundles(session: RetrainingSession, work_plan: WorkPlan, bundles: list[StoredBundle]) -> list[ScoreTable]:
    from heads.bundle import digest

    files = [job.scores_file(session.settings.root, digest(bundle.path), work_plan.version.digest) for bundle in bundles]
    missing = {file.name: bundle.name for bundle, file in zip(bundles, files, strict=True) if not file.exists()}
    if missing:
        key = hashlib.sha256("".join(missing).encode()).hexdigest()[:16]
        made = new_job(session, work_plan, "score", key)
        session.run_job(replace(made, bundles=tuple(missing.values())))
    return [job.read_scores(file) for file in files]


def bundle_of(session: RetrainingSession, version: ModelVersion) -> StoredBundle:
    """The bundle of a registered version: in its work's folder, else pulled once from the registry."""
    storage = open_place(session.settings.root)
    trained, pulled = bundle_name(version.tags.get("headstart.work_key", "-")), f"pulled/{version.name}-{version.version}"
    for name in (trained, pulled):
        if found := keep_here(storage.within(name)):
            return StoredBundle(name, found)
    with storage.filling() as folder:
        session.registry.pull(version.name, version.version, folder / pulled)
    found = keep_here(storage.within(pulled))
    assert found is not None, "it was stored just now"
    return StoredBundle(pulled, found)
