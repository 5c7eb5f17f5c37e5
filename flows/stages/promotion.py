"""The promote stage: the verdict on the candidate, carried out in the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from flows import dataset
from flows import plan as plans
from flows.errors import Overtaken
from flows.gate import Account
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

    name, candidate, champion = session.plan.name, scores.candidate, scores.champion
    versions = {version.version: version for version in session.registry.versions(name)}
    own = [version for version in versions.values() if version.tags.get("headstart.work_key") == candidate.key]
    recipe = plans.recipe_key(session.plan, [work.variant for work in work_plan.works])
    rules = session.plan.promotion
    case = gate.Case(
        scores.table,
        scores.champion_table,
        gate.Policy(work_plan.metric, rules.min_gain, rules.alpha, rules.guards.severities, rules.margin, rules.max_slowdown),
        majority=majority_classes(work_plan.version),
        withdrawn=any(is_withdrawn(version) for version in own),
        champion_name=f"champion {champion.version}" if champion else "",
        account=_account(session, work_plan, scores, recipe, versions),
        recipe=recipe,
        anchor=scores.anchor_table,
        anchor_name=f"version {scores.anchor.version}, the last that was promoted as superior" if scores.anchor else "",
        groups=plans.groups_of(session.plan, work_plan.version),
        baseline=scores.baseline_table,
        baseline_name=f"the {scores.baseline.label}" if scores.baseline else "",
        taken_together={s.digest: s.group for s in work_plan.version.samples if s.group and s.split == "test"},
    )
    verdict = gate.decide(case)
    if verdict.promoted:
        verdict = gate.decide_by_trials(verdict, case, collect_trials(session, work_plan, scores))
    if champion and scores.champion_table and scores.table.bundle_digest == scores.champion_table.bundle_digest:
        return Promotion(verdict, champion)
    session.say("Registering the candidate")
    try:
        version = _register(session, work_plan, scores)
    except BundleError as error:
        # What no consumer could load is no version; the look that it took counts all the same.
        _record_unregistered(session, work_plan, scores, verdict, str(error))
        if verdict.promoted:
            raise
        return Promotion(verdict, None)
    over = champion.version if champion else None
    return carry_out(session.registry, version, verdict, over, manual=rules.manual)


def _register(session: RetrainingSession, work_plan: WorkPlan, scores: Scores) -> ModelVersion:
    candidate = scores.candidate
    return session.registry.register(
        session.plan.name,
        bundle=scores.bundle,
        run_id=str(candidate.run_id),
        metrics=scores.table.metrics,
        **_origin(session, work_plan, scores),
    )


def _record_unregistered(session: RetrainingSession, work_plan: WorkPlan, scores: Scores, verdict: Verdict, why: str) -> None:
    words = f"not registered, since its bundle cannot be used where it is served: {why}"
    session.registry.record_unregistered(
        session.plan.name,
        replace(verdict, promoted=False, reasons=(*verdict.reasons, words)),
        scores.champion.version if scores.champion else None,
        **_origin(session, work_plan, scores),
    )


def _origin(session: RetrainingSession, work_plan: WorkPlan, scores: Scores) -> Mapping[str, str]:
    """Where the candidate comes from, as the registry keeps it."""
    return {
        "work_key": scores.candidate.key,
        "variant_id": scores.candidate.variant.variant_id,
        "data_version": work_plan.version.digest,
        "git_commit": dataset.head_commit(session.settings.workspace),
    }


def _account(
    session: RetrainingSession, work_plan: WorkPlan, scores: Scores, recipe: str, versions: Mapping[str, ModelVersion]
) -> Account:
    """What was asked before about challengers of the champion, or, with a margin, of the version that losses are counted from."""
    from flows.stages.account import account_of

    champion, name = scores.champion, session.plan.name
    if champion is None:
        return Account()
    return account_of(
        session.registry.history(name),
        versions,
        champion,
        session.settings.root,
        metric=work_plan.metric,
        recipe=recipe,
        work_key=scores.candidate.key,
        anchor=(scores.anchor or champion).version if session.plan.promotion.margin is not None else None,
    )


def carry_out(
    registry: Registry, version: ModelVersion, verdict: Verdict, over: str | None, *, manual: bool = False
) -> Promotion:
    """Make the version champion or challenger as the verdict says, which compared it with the champion `over`.

    If promotions are `manual`, a version that is proven waits for a person, as the challenger; none takes its place but one that
    is proven, too. If the champion is another one by now, the version has lost, whatever the verdict: it becomes the challenger,
    and nothing of the new champion's account is spent.
    """
    name, number = version.name, version.version
    waiting = registry.waiting(name)
    if manual and verdict.promoted:
        words = f"proven, waits for approval: headstart models approve {name} --version {number} --reason TEXT"
        verdict = replace(verdict, promoted=False, waits=True, reasons=(words, *verdict.reasons))
    elif waiting and waiting.version != number:
        words = f"version {waiting.version} is proven, and waits for approval"
        verdict = replace(verdict, reasons=(*verdict.reasons, words))
    try:
        if verdict.promoted:
            return Promotion(verdict, registry.promote(name, number, verdict, over))
        registry.record(name, number, verdict, over)
    except Overtaken as error:
        words = str(error)
        findings = (Finding("still_champion", False, words), *verdict.findings)
        verdict = replace(
            verdict,
            promoted=False,
            waits=False,
            reasons=(words, *verdict.reasons),
            figures={},
            findings=findings,
            level_spent=0.0,
        )
        registry.record(name, number, verdict)
    if waiting and waiting.version != number and not verdict.waits and registry.waiting(name):
        return Promotion(verdict, registry.find(name, number))
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
