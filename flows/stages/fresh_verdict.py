"""The verdict on an earlier candidate by samples that arrived since: bets on them decide, then the guards on the holdout."""

from __future__ import annotations

from dataclasses import replace

from flows.gate import Case, Policy, decide, decide_by_trials
from flows.plan import groups_of
from flows.records import Finding, Verdict
from flows.stages.fresh import taken_together
from flows.stages.scoring import score_bundles
from flows.stages.session import RetrainingSession
from flows.stages.trials.collect import collect_trials
from flows.stages.values import Challenge, FreshScores, WorkPlan


def judge_challenger(
    session: RetrainingSession, work_plan: WorkPlan, fresh: FreshScores, policy: Policy, recipe: str
) -> tuple[Verdict, Challenge | None]:
    """The verdict on tonight's challenger, and its scores by which it was reached; None if there was nothing to judge.

    The holdout is read only once the bets have decided, and the trials are made only if it keeps nothing from promotion.
    """
    challenge = fresh.challenge
    if challenge is None:
        finding = Finding("fresh_labels", False, fresh.words)
        return Verdict(False, (fresh.words,), {}, (finding,), policy.metric, recipe), None
    case = Case(
        challenge.table,
        challenge.champion_table,
        policy,
        champion_name=f"champion {challenge.champion.version}",
        recipe=recipe,
        taken_together=taken_together(work_plan.version),
        fresh=fresh.account,
        files={s.digest: s.file for s in work_plan.version.samples},
    )
    verdict = decide(case)
    # Of two that cannot be compared no label was bet on.
    bet_on = challenge.table.data_version if any(one.guard == "fresh_labels" for one in verdict.findings) else ""
    if verdict.promoted:
        challenge = _on_holdout(session, work_plan, challenge)
        case = replace(
            case,
            candidate=challenge.table,
            champion=challenge.champion_table,
            proof=verdict.findings[0],
            groups=groups_of(session.plan, work_plan.version),
            taken_together={s.digest: s.group for s in work_plan.version.samples if s.group and s.split == "test"},
        )
        verdict = decide(case)
        if verdict.promoted:
            verdict = decide_by_trials(verdict, case, collect_trials(session, work_plan, challenge))
    return replace(verdict, fresh=bet_on), challenge


def _on_holdout(session: RetrainingSession, work_plan: WorkPlan, challenge: Challenge) -> Challenge:
    from flows.stages.scoring import bundle_of

    session.say(f"Challenger {challenge.version.version} is proven better; scoring it and the champion on the holdout")
    bundles = [challenge.stored, bundle_of(session, challenge.champion)]
    table, champion_table = score_bundles(session, work_plan, bundles)
    return replace(challenge, table=table, champion_table=champion_table)
