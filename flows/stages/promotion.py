"""The promote stage: the verdict on the candidate, carried out in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flows import dataset
from flows.errors import Overtaken
from flows.gate import Account, Policy
from flows.gate.guards.admission import WITHDRAWN
from flows.model_version import ModelVersion
from flows.plan import groups_of, majority_classes, recipe_key
from flows.records import Finding, Verdict
from flows.registry import Registry
from flows.stages.session import RetrainingSession
from flows.stages.trials.collect import collect_trials
from flows.stages.values import FreshScores, PromotionResult, Scores, WorkPlan
from heads.errors import BundleError


def promote(session: RetrainingSession, work_plan: WorkPlan, scores: Scores) -> PromotionResult:
    """Judge the candidate, register it, and make it champion or challenger as the verdict says; the ledger keeps the verdict."""
    from flows import gate

    name, candidate, champion = session.plan.name, scores.candidate, scores.champion
    recipe = recipe_key(session.plan, [work.variant for work in work_plan.works])
    rules = session.plan.promotion
    policy = gate.Policy(work_plan.metric, rules.min_gain, rules.alpha, rules.guards.severities, rules.margin, rules.max_slowdown)
    if scores.fresh and champion:
        return _promote_challenger(session, work_plan, scores, scores.fresh, policy, recipe)
    versions = session.registry.versions_by_number(name)
    own = [version for version in versions.values() if version.work_key == candidate.key]
    case = gate.Case(
        scores.table,
        scores.champion_table,
        policy,
        majority=majority_classes(work_plan.version),
        classes=work_plan.classes,
        withdrawn=any(version.is_withdrawn for version in own),
        champion_name=f"champion {champion.version}" if champion else "",
        account=_account(session, work_plan, scores, recipe, versions),
        recipe=recipe,
        anchor=scores.anchor_table,
        anchor_name=f"version {scores.anchor.version}, the last that was promoted as superior" if scores.anchor else "",
        groups=groups_of(session.plan, work_plan.version),
        baseline=scores.baseline_table,
        baseline_name=f"the {scores.baseline.label}" if scores.baseline else "",
        baseline_reads=scores.baseline.reads if scores.baseline else "",
        is_frozen=candidate.variant.freeze == "all",
        is_pretrained=session.plan.weights_of(candidate.variant.backbone) != "none",
        taken_together={s.digest: s.group for s in work_plan.version.samples if s.group and s.split == "test"},
        files={s.digest: s.file for s in work_plan.version.samples},
    )
    verdict = gate.decide(case)
    if verdict.promoted:
        verdict = gate.decide_by_trials(verdict, case, collect_trials(session, work_plan, scores))
    if champion and scores.champion_table and scores.table.bundle_digest == scores.champion_table.bundle_digest:
        return PromotionResult(verdict, champion)
    session.say("Registering the candidate")
    try:
        version = _register(session, work_plan, scores, scores.told(verdict))
    except BundleError as error:
        # What no consumer could load is no version; the look that it took counts all the same.
        _record_unregistered(session, work_plan, scores, verdict, str(error))
        if verdict.promoted:
            raise
        return PromotionResult(verdict, None)
    over = champion.version if champion else None
    return carry_out(session.registry, version, verdict, over, manual=rules.manual)


def _promote_challenger(
    session: RetrainingSession, work_plan: WorkPlan, scores: Scores, fresh: FreshScores, policy: Policy, recipe: str
) -> PromotionResult:
    """Judge the last challenger, make it champion if the verdict says so, and the candidate the challenger to be judged next.

    The candidate is registered before the verdict is kept: what the verdict bet on is never new to a later challenger.
    """
    from flows.gate import told_measures
    from flows.stages.fresh_verdict import judge_challenger

    registry, champion = session.registry, scores.champion
    assert champion is not None
    verdict, judged = judge_challenger(session, work_plan, fresh, policy, recipe)
    named: ModelVersion | None = champion
    if scores.table.bundle_digest != registry.bundle_digest(champion):
        session.say("Registering the candidate")
        try:
            named = _register(session, work_plan, scores, told_measures(scores.table.metrics, silent=True))
        except BundleError as error:
            session.say(f"The candidate is no challenger: no consumer could load it: {error}")
            named = None
    if judged:
        manual = session.plan.promotion.manual
        verdict, version = keep_verdict(registry, judged.version, verdict, champion.version, manual=manual)
        judged = replace(judged, version=version)
        if verdict.promoted:
            registry.tell_holdout(version, judged.table.metrics)
    if named is None or named == champion:
        return PromotionResult(verdict, named, judged)
    words = WITHDRAWN if named.is_withdrawn else "the challenger from now on: what arrives after its data version judges it"
    told = Verdict(False, (words,), {}, (Finding("fresh_labels", False, words),), policy.metric, recipe)
    registry.record(named.name, named.version, told)
    waiting = registry.waiting(named.name)
    registry.set_challenger(named.name, (waiting or named).version)
    return PromotionResult(verdict, registry.find(named.name, named.version), judged, told)


def _register(session: RetrainingSession, work_plan: WorkPlan, scores: Scores, measures: Mapping[str, float]) -> ModelVersion:
    candidate = scores.candidate
    return session.registry.register(
        session.plan.name,
        bundle=scores.bundle,
        run_id=str(candidate.run_id),
        metrics=measures,
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
) -> PromotionResult:
    """Keep the verdict as `keep_verdict` does; a version that is not promoted becomes the challenger.

    None takes the place of a version that waits for approval but one that is proven, too.
    """
    name, number = version.name, version.version
    waiting = registry.waiting(name)
    verdict, version = keep_verdict(registry, version, verdict, over, manual=manual)
    if verdict.promoted:
        return PromotionResult(verdict, version)
    if waiting and waiting.version != number and not verdict.waits and registry.waiting(name):
        return PromotionResult(verdict, registry.find(name, number))
    return PromotionResult(verdict, registry.set_challenger(name, number))


def keep_verdict(
    registry: Registry, version: ModelVersion, verdict: Verdict, over: str | None, *, manual: bool = False
) -> tuple[Verdict, ModelVersion]:
    """Enter a verdict, which compared the version with the champion `over`, into the ledger; if it says so, promote the version.

    If promotions are `manual`, a version that is proven waits for a person. If the champion is another one by now, the version
    has lost, whatever the verdict, and nothing of the new champion's account is spent.
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
            return verdict, registry.promote(name, number, verdict, over)
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
            fresh="",
        )
        registry.record(name, number, verdict)
    return verdict, version
