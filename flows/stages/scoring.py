"""The score stage: the candidate and the champion on the same holdout, in one Ray job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from flows import job
from flows.errors import AskedWrongly, HeadstartError
from flows.kept import keep_here
from flows.places import open_place
from flows.records import DataVersion, ModelVersion, ScoreTable, TrainResult
from flows.stages.account import anchor_of
from flows.stages.baseline import find_baselines
from flows.stages.fresh import bets_before, find_arrived, find_challenger, fresh_account_of
from flows.stages.jobs import new_job
from flows.stages.session import RetrainingSession
from flows.stages.values import Challenge, FreshScores, Scores, StoredBundle, StoredTfidf, WorkPlan
from flows.work_folder import bundle_name
from heads.errors import HeadsError


def score(session: RetrainingSession, work_plan: WorkPlan, trained: TrainResult) -> Scores:
    """Score the candidate, which validation chooses, and the champion on the holdout of this data version, sample by sample.

    Beside a first model the baseline is scored, if one was fitted, of several the best on validation.
    """
    from flows import gate

    target = work_plan.target
    num_labels = sum(s.split == "val" and s.labels[target] is not None for s in work_plan.version.samples)
    candidate, why = gate.choose(trained.variants, work_plan.metric, serving_costs(trained), num_labels)
    session.say(f"Candidate: {why}")
    baselines = find_baselines(session.settings, work_plan)
    baseline = baselines[0]
    if settled := session.registry.settle(session.plan.name, besides=candidate.key):
        session.say(f"Ledger: {settled.reasons[0]}")
    champion = session.registry.current(session.plan.name).get("champion")
    bundle = _fetch_bundle(session, bundle_name(candidate.key)).path
    session.registry.prepare(session.plan.name, bundle, candidate.key)
    if not any(s.split == "test" and s.labels[target] is not None for s in work_plan.version.samples):
        empty = ScoreTable("", work_plan.version.digest, (), {})
        return Scores(candidate, empty, champion, None, why=why, bundle=bundle, baselines=baselines)
    stored = StoredBundle(bundle_name(candidate.key), bundle)
    if champion and session.plan.promotion.evidence == "fresh":
        session.say("Scoring the candidate on the holdout")
        (table,) = score_bundles(session, work_plan, [stored])
        fresh = score_fresh(session, work_plan, champion, candidate.key)
        return Scores(candidate, table, champion, None, why=why, bundle=bundle, fresh=fresh, baselines=baselines)
    anchor = find_anchor(session, work_plan.metric, champion)
    bundles: list[StoredBundle | StoredTfidf] = [stored, *(bundle_of(session, each) for each in (champion, anchor) if each)]
    beside = f"champion {champion.version}" if champion else ""
    if champion is None and baseline.bundle and session.plan.promotion.guards.baseline != "off":
        bundles.append(StoredTfidf(baseline.bundle) if baseline.kind == "tfidf" else _fetch_bundle(session, baseline.bundle))
        beside = f"the {baseline.label}"
    session.say("Scoring the candidate" + (f" and {beside}" if beside else "") + " on the holdout")
    table, *others = score_bundles(session, work_plan, bundles)
    champion_table, anchor_table = others[0] if champion else None, others[1] if anchor else None
    baseline_table = others[0] if others and not champion else None
    return Scores(candidate, table, champion, champion_table, anchor, anchor_table, why, baselines, baseline_table, bundle=bundle)


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


def _fetch_bundle(session: RetrainingSession, name: str) -> StoredBundle:
    place = open_place(session.settings.root).within(name)
    bundle = keep_here(place)
    if bundle is None:
        raise AskedWrongly(f"{place.address} is gone: remove what lies beside it, so that the next retraining makes it again")
    return StoredBundle(name, bundle)


def score_fresh(session: RetrainingSession, work_plan: WorkPlan, champion: ModelVersion, work_key: str) -> FreshScores:
    """The scores of the last challenger and of the champion on samples that arrived after both were made; none of those bet on.

    Samples of all splits count, since neither was trained on any of them. What cannot be read is told, and not judged tonight:
    the candidate of this `work_key` is the next challenger all the same.
    """
    registry, name = session.registry, session.plan.name
    versions = {version.version: version for version in registry.versions(name)}
    challenger = find_challenger(versions.values(), champion, work_key)
    if challenger is None:
        return FreshScores(words=f"champion {champion.version} has no challenger yet: the first is this candidate")
    history = registry.history(name)
    bets = bets_before(history, champion, challenger, work_plan.version.digest)
    try:
        arrived = find_arrived(session.settings, work_plan, (challenger, champion), bets, versions)
        bundles = [checked_bundle(session, version) for version in (challenger, champion)]
    except (HeadstartError, HeadsError) as error:
        return FreshScores(words=f"nothing is judged tonight: {error}")
    if not arrived.samples:
        return FreshScores(words=arrived.words)
    session.say(f"Scoring challenger {challenger.version} and champion {champion.version} on what arrived since")
    tables = score_bundles(session, work_plan, bundles, work_plan.version.part(arrived.samples))
    account = fresh_account_of(history, versions, champion, session.settings.root, bets, metric=work_plan.metric)
    return FreshScores(Challenge(challenger, bundles[0], tables[0], champion, tables[1]), account)


def score_bundles(
    session: RetrainingSession,
    work_plan: WorkPlan,
    bundles: Sequence[StoredBundle | StoredTfidf],
    part: DataVersion | None = None,
) -> list[ScoreTable]:
    """The bundles' score tables on the holdout, or on all samples of a `part` of the data version; kept ones are read."""
    version = part or work_plan.version
    files = [job.scores_file(session.settings.root, bundle.digest, version.digest) for bundle in bundles]
    missing = {file.name: bundle.name for bundle, file in zip(bundles, files, strict=True) if not file.exists()}
    if missing:
        key = hashlib.sha256("".join(missing).encode()).hexdigest()[:16]
        made = new_job(session, work_plan, "fresh" if part else "score", key)
        # The samples that a kind of job may see are chosen when it is made.
        session.run_job(replace(made, version=version, bundles=tuple(missing.values())))
    return [job.read_scores(file) for file in files]


def checked_bundle(session: RetrainingSession, version: ModelVersion) -> StoredBundle:
    """The bundle of a registered version, verified. Raises BundleError or HeadstartError if it cannot be had."""
    from heads.bundle import verify

    bundle = bundle_of(session, version)
    verify(bundle.path)
    return bundle


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
