"""Whether challengers are better than the champion on samples that arrived after both were made."""

from __future__ import annotations

import math

import numpy as np

from flows.gate.case import Case, rows_of
from flows.gate.fresh import STAKES, Night, bets_of, is_proven, log_wealths
from flows.gate.guards.paired_test import needed
from flows.records import Finding
from flows.words import counted

# A stake's logarithm is told up to here: beyond it a float has no number for it.
MOST_SHOWN = 700.0


def fresh_labels(case: Case) -> Finding | None:
    """The bets on tonight's new samples and on those of the reign before them; None where the holdout decides.

    Until they have decided, nothing is said of how well the samples were read: they are of the next night's holdout, too.
    """
    if case.fresh is None or case.proof:
        return case.proof
    pairs = [(rows_of(new, case.target), rows_of(old, case.target)) for new, old in case.fresh.nights]
    nights = [bets_of(*pair, case.measure, case.taken_together) for pair in (*pairs, (case.after, case.before))]
    *_, wealth = log_wealths(night.differences for night in nights)
    num_labels, num_bets = sum(night.num_samples for night in nights), sum(len(night.differences) for night in nights)
    figures = {
        "num_new": float(nights[-1].num_samples),
        "num_labels": float(num_labels),
        "num_bets": float(num_bets),
        "num_nights": float(len(nights)),
        "least_wealth": 1 / case.policy.alpha,
    }
    arrived = (
        f"{counted(nights[-1].num_samples, 'label')} arrived since challenger and champion were made, "
        f"{num_labels:,} in {counted(len(nights), 'night')} of the reign of {case.champion_name}"
        f"{f' (in {num_bets:,} groups)' if num_bets < num_labels else ''}"
    )
    if is_proven(wealth, nights[-1].differences, case.policy.alpha):
        won, figures = _won(case, nights, math.exp(min(wealth, MOST_SHOWN)), figures)
        return Finding("fresh_labels", True, f"{arrived}: {won}", figures, _notes(case))
    return Finding("fresh_labels", False, f"{arrived}: {_not_yet(nights, wealth, case.policy.alpha)}", figures, _notes(case))


def _won(case: Case, nights: list[Night], wealth: float, figures: dict[str, float]) -> tuple[str, dict[str, float]]:
    gain = float(np.concatenate([night.differences for night in nights]).mean())
    words = (
        f"challengers gain {gain:+.4f} in {case.measure} on them, this one {nights[-1].gain:+.4f} tonight; a stake of 1 on that "
        f"has grown to {wealth:.3g} (at least {1 / case.policy.alpha:g}: with no challenger better it ever does with a chance of "
        f"at most alpha {case.policy.alpha:g})"
    )
    return words, figures | {"gain": gain, "newest_gain": nights[-1].gain, "wealth": wealth}


def _not_yet(nights: list[Night], wealth: float, alpha: float) -> str:
    differences = np.concatenate([night.differences for night in nights])
    if wealth >= -math.log(alpha):
        return "challengers are proven better on them, but this one is behind on tonight's"
    # Bets of the best size grow to exp(z² / 2), and the stake lies on several sizes.
    least = math.sqrt(2 * math.log(1 / (alpha * STAKES[-1])))
    spread = math.sqrt(float(differences @ differences))
    z = float(differences.sum()) / spread if spread else 0.0
    return f"no challenger is proven better on them{needed(z, least, len(differences))}"


def _notes(case: Case) -> tuple[str, ...]:
    assert case.fresh is not None
    lost, looks = case.fresh.num_lost, case.fresh.num_looks
    notes = [f"the scores of {counted(lost, 'earlier night')} of the reign are gone, and do not count"] if lost else []
    if looks:
        notes.append(
            f"the holdout was asked {counted(looks, 'time')} about challengers of {case.champion_name} too: a plan that changes "
            "its evidence within a reign may spend alpha twice"
        )
    return tuple(notes)
