"""The promote stage: the verdict on the candidate, carried out in the registry."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from flows import dataset
from flows import plan as plans
from flows.errors import Overtaken
from flows.records import DataVersion, Finding, ModelVersion, Verdict
from flows.registry import Registry, is_withdrawn
from flows.stages.session import RetrainingSession
from flows.stages.trials import collect_trials
from flows.stages.values import Promotion, Scores, WorkPlan
from heads.catalogue import TASK_FACTS
from heads.errors import BundleError


def promote(session: RetrainingSession, work_plan: WorkPlan, scores: Scores) -> Promotion:
    """Judge the candidate, register it, and make it champion or challenger as the verdict says; the ledger keeps the verdict."""
    from flows import gate
    from flows.stages.account import account_of

    name, candidate, champion = session.plan.name, scores.candidate, scores.champion
    versions = {version.version: version for version in session.registry.versions(name)}
    own = [version for version in versions.values() if version.tags.get("headstart.work_key") == candidate.key]
    recipe = plans.recipe_key(session.plan, [work.variant for work in work_plan.works])
    rules = session.plan.promotion
    account = gate.Account()
    if champion:
        account = account_of(
            session.registry.history(name),
            versions,
            champion,
            session.settings.storage,
            metric=work_plan.metric,
            recipe=recipe,
            work_key=candidate.key,
            anchor=(scores.anchor or champion).version if rules.margin is not None else None,
        )
    case = gate.Case(
        scores.table,
        scores.champion_table,
        gate.Policy(work_plan.metric, rules.min_gain, rules.alpha, rules.guards.severities, rules.margin),
        majority=majority_classes(work_plan.version),
        withdrawn=any(is_withdrawn(version) for version in own),
        champion_name=f"champion {champion.version}" if champion else "",
        account=account,
        recipe=recipe,
        anchor=scores.anchor_table,
        anchor_name=f"version {scores.anchor.version}, the last that was promoted as superior" if scores.anchor else "",
        groups=plans.groups_of(session.plan, work_plan.version),
    )
    verdict = gate.decide(case)
    if verdict.promoted:
        verdict = gate.decide(replace(case, trials=collect_trials(session, work_plan, scores)))
    if champion and scores.champion_table and scores.table.bundle_digest == scores.champion_table.bundle_digest:
        return Promotion(verdict, champion)
    session.say("Registering the candidate")
    try:
        version = session.registry.register(
            name,
            bundle=candidate.bundle,
            run_id=str(candidate.run_id),
            work_key=candidate.key,
            variant_id=candidate.variant.variant_id,
            data_version=work_plan.version.digest,
            git_commit=dataset.head_commit(session.settings.workspace),
            metrics=scores.table.metrics,
        )
    except BundleError:
        # What no consumer could load is no version, and the verdict says so already.
        if verdict.promoted:
            raise
        return Promotion(verdict, None)
    return carry_out(session.registry, version, verdict, over=champion.version if champion else None)


def carry_out(registry: Registry, version: ModelVersion, verdict: Verdict, over: str | None) -> Promotion:
    """Make the version champion or challenger as the verdict says, which compared it with the champion `over`.

    If that is champion no more, the version has lost, whatever the verdict: it becomes the challenger, and nothing of the new
    champion's account is spent.
    """
    name, number = version.name, version.version
    try:
        if verdict.promoted:
            return Promotion(verdict, registry.promote(name, number, verdict, over))
        registry.record(name, number, verdict, over)
    except Overtaken as error:
        words = str(error)
        findings = (Finding("still_champion", False, words), *verdict.findings)
        verdict = replace(
            verdict, promoted=False, reasons=(words, *verdict.reasons), figures={}, findings=findings, level_spent=0.0
        )
        registry.record(name, number, verdict)
    return Promotion(verdict, registry.set_challenger(name, number))


def majority_classes(version: DataVersion) -> dict[str, str]:
    """The most frequent cell of each target in `train`, without targets of masks; ties go to the first by name."""
    majority = {}
    for target in version.targets:
        if TASK_FACTS[plans.find_task(version, target)].tells == "pixels":
            continue
        counts = Counter(name for s in version.samples if s.split == "train" and (name := s.labels[target]) is not None)
        if counts:
            majority[target] = min(counts, key=lambda name: (-counts[name], name))
    return majority
