"""Whether the candidate is not worse by a margin than the last model that was promoted as superior."""

from __future__ import annotations

import scipy

from flows.gate.account import WINDOW, chance_unseen, least_units, look_at_mean
from flows.gate.account import least_z as least_z_of
from flows.gate.case import Case, rows_of
from flows.gate.classes import paired_score
from flows.gate.clusters import sampled_words
from flows.gate.evidence import Evidence, describe_p
from flows.gate.guards.paired_test import gathering, needed
from flows.gate.recipe import sample_values
from flows.records import Finding
from flows.words import counted
from heads.catalogue import TASK_FACTS

NAME = "non_inferior"


def non_inferior(case: Case) -> Finding | None:
    """The test that a loss of the policy's margin is ruled out; None if the policy has none, or there is no champion.

    It is asked as often as the test of a gain: of the first challenger of a reign, then weekly of the last seven of a recipe. A
    reign is that of the model that was last promoted as superior, and losses are counted from that one: against each champion
    in turn they would add up ("bio-creep": Feng, Emerson and Simon 2021, Biometrics 77:31-44).
    """
    if case.margin is None:
        return None
    if case.look == "none":
        return gathering(case, NAME)
    evidence = case.tested.evidence
    if isinstance(evidence, str):
        return Finding(NAME, False, evidence)
    return _first_look(case, evidence, case.margin) if case.look == "first" else _weekly_look(case, case.margin)


def _first_look(case: Case, evidence: Evidence, margin: float) -> Finding:
    p_value, test = _p_value(case.tested, evidence, margin)
    passed, level = p_value < case.level.value, case.level
    gain = evidence.figures["gain"]
    figures = {**evidence.figures, "look": 1.0, "margin": margin, "margin_p_value": p_value}
    samples = sampled_words(int(evidence.figures["num_samples"]), None, case.num_repeated)
    words = (
        f"{gain:+.4f} ({evidence.figures['gain_low']:+.4f} to {evidence.figures['gain_high']:+.4f}) on {samples} against "
        f"{evidence.opponent}; a loss of {margin:g} is {'' if passed else 'not '}ruled out: {test} {describe_p(p_value)}, "
        f"{'below' if passed else 'not below'} {level.words}"
    )
    return Finding(NAME, passed, words, figures)


def _p_value(case: Case, evidence: Evidence, margin: float) -> tuple[float, str]:
    """The chance of such a result or a better one if the loss is the margin; and the name of the test."""
    figures = evidence.figures
    clusters = case.clusters_of(case.after)
    if TASK_FACTS[case.task].tells == "class" and clusters is None:
        fixed, broken, n = (int(figures[name]) for name in ("num_fixed", "num_broken", "num_samples"))
        return float(scipy.stats.norm.sf(paired_score(fixed, broken, n, -margin))), "score test"
    rows = rows_of(case.candidate, case.target)
    look = look_at_mean(*sample_values([rows], case.before, case.task, case.measure), clusters)
    p_value = float(scipy.stats.t.sf(look.above(-margin), max(1, look.num_units - 1)))
    unseen = chance_unseen(look.num_units, margin)
    if unseen > p_value:
        # Its standard error knows nothing of a loss that few samples have, and none of these.
        return unseen, f"chance that none of {counted(look.num_units, 'sample' if clusters is None else 'group')} shows it"
    return p_value, "t test of what each sample adds"


def _weekly_look(case: Case, margin: float) -> Finding:
    look, number = case.tested.mean_look, case.account.num_looks + 1
    least = least_z_of(case.policy.alpha)
    figures = {"num_samples": float(look.num_samples), "look": float(number), "least_z": least, "margin": margin}
    asked = (
        f"look {number} against {case.tested.champion_name}: of the mean of the last {WINDOW} of this recipe a loss of {margin:g}"
    )
    if not case.is_decided:
        few = least_units(case.policy.alpha, margin) - look.num_units
        kind = "label" if look.num_units == look.num_samples else "group"
        lacking = f": it might lie where none of these do; {counted(few, f'more {kind}')} would show it" if few > 0 else ""
        words = f"{asked} is not ruled out{lacking or needed(look.above(-margin), least, look.num_samples)}"
        return Finding(NAME, False, words, figures)
    figures |= {"gain": look.gain, "z": look.above(-margin), "newest_gain": look.newest_gain}
    words = (
        f"{asked} is ruled out: it gains {look.gain:+.4f} on {sampled_words(look.num_samples, None, case.num_repeated)}, "
        f"{look.above(-margin):.2f} standard errors above that (at least {least:.1f}), and the newest {look.newest_gain:+.4f}"
    )
    return Finding(NAME, True, words, figures)
