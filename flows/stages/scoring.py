"""The score stage: the candidate and the champion on the same holdout, in one Ray job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from flows import job
from flows.baselines import is_counted
from flows.errors import AskedWrongly, HeadstartError
from flows.local_copies import keep_here
from flows.model_version import ModelVersion
from flows.places import open_place
from flows.records import DataVersion, ScoreTable, TrainResult
from flows.stages.account import anchor_of
from flows.stages.baseline import find_baselines
from flows.stages.fresh import bets_before, find_arrived, find_challenger, fresh_account_of
from flows.stages.jobs import new_job
from flows.stages.session import RetrainingSession
from flows.stages.values import Challenge, FreshScores, Scores, StoredBundle, StoredCounted, WorkPlan
from flows.work_folder import bundle_name
from heads.errors import HeadsError


def score(session: RetrainingSession, work_plan: WorkPlan, trained: TrainResult) -> Scores:
    """Score the candidate, which validation chooses, and the champion on the holdout of this data version, sample by sample.

    Beside a first model the baseline is scored, if one was fitted, of several the best on validation.
    """
    unscored = _choose_candidate(session, work_plan, trained)
    session.registry.prepare(session.plan.name, unscored.bundle, unscored.key)
    if not any(s.split == "test" and s.labels[work_plan.target] is not None for s in work_plan.version.samples):
        return unscored
    if unscored.champion and session.plan.promotion.evidence == "fresh":
        session.say("Scoring the candidate on the holdout")
        (table,) = score_bundles(session, work_plan, [unscored.stored])
        fresh = score_fresh(session, work_plan, unscored.champion, unscored.key)
        return replace(unscored, table=table, fresh=fresh)
    return _score_on_holdout(session, work_plan, unscored)


def _choose_candidate(session: RetrainingSession, work_plan: WorkPlan, trained: TrainResult) -> Scores:
    """The variant that validation chooses, with what it is compared with; nothing is scored yet."""
    from flows import gate

    num_labels = sum(s.split == "val" and s.labels[work_plan.target] is not None for s in work_plan.version.samples)
    candidate, why = gate.choose(trained.variants, work_plan.metric, serving_costs(trained), num_labels)
    session.say(f"Candidate: {why}")
    baselines = find_baselines(session.settings, work_plan)
    if settled := session.registry.settle(session.plan.name, besides=candidate.key):
        session.say(f"Ledger: {settled.reasons[0]}")
    return Scores(
        candidate=candidate,
        table=ScoreTable("", work_plan.version.digest, (), {}),
        champion=session.registry.current(session.plan.name).get("champion"),
        why=why,
        baselines=baselines,
        bundle=_fetch_bundle(session, bundle_name(candidate.key)).path,
    )


def _score_on_holdout(session: RetrainingSession, work_plan: WorkPlan, unscored: Scores) -> Scores:
    """The scores of the candidate and of the champion with its anchor, or, beside a first model, of the baseline."""
    champion, baseline = unscored.champion, unscored.baseline
    if champion:
        anchor = find_anchor(session, work_plan.metric, champion)
        session.say(f"Scoring the candidate and champion {champion.version} on the holdout")
        others = [bundle_of(session, version) for version in (champion, anchor) if version]
        table, champion_table, *rest = score_bundles(session, work_plan, [unscored.stored, *others])
        return replace(
            unscored, table=table, champion_table=champion_table, anchor=anchor, anchor_table=rest[0] if rest else None
        )
    if baseline and baseline.bundle and session.plan.promotion.guards.baseline != "off":
        session.say(f"Scoring the candidate and the {baseline.label} on the holdout")
        plain = StoredCounted(baseline.bundle) if is_counted(baseline.bundle) else _fetch_bundle(session, baseline.bundle)
        table, baseline_table = score_bundles(session, work_plan, [unscored.stored, plain])
        return replace(unscored, table=table, baseline_table=baseline_table)
    session.say("Scoring the candidate on the holdout")
    (table,) = score_bundles(session, work_plan, [unscored.stored])
    return replace(unscored, table=table)


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
    versions = session.registry.versions_by_number(name)
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
    versions = registry.versions_by_number(name)
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
    bundles: Sequence[StoredBundle | StoredCounted],
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
    trained, pulled = bundle_name(version.work_key or "-"), f"pulled/{version.name}-{version.version}"
    for name in (trained, pulled):
        if found := keep_here(storage.within(name)):
            return StoredBundle(name, found)
    with storage.filling() as folder:
        session.registry.pull(version.name, version.version, folder / pulled)
    found = keep_here(storage.within(pulled))
    assert found is not None, "it was stored just now"
    return StoredBundle(pulled, found)
