"""How often the candidate is wrong where the champion was right: what those who used the champion will notice."""

from __future__ import annotations

import numpy as np

from flows.gate.answers import read_pair, right
from flows.gate.case import Case
from flows.gate.classes import wilson_interval
from flows.gate.evidence import above_or_not
from flows.records import Finding
from flows.words import counted
from heads.catalogue import TASK_FACTS

# The greatest share of samples that passes.
MOST = 0.05
# So many flips are named.
MAX_NAMED = 3
DIGEST_CHARS = 12


def negative_flips(case: Case) -> Finding | None:
    """The share of negative flips (Yan et al., "Positive-Congruent Training", CVPR 2021); None of masks or without a champion.

    It passes unless the share is above 5 % beyond its 95 % interval. A set of labels is right if all of it is, tags if all spans
    are. Notes name the flips of which the candidate is surest.
    """
    if not case.champion or TASK_FACTS[case.task].tells == "pixels":
        return None  # a mask is never wholly right
    flips, n = flipped(case), len(case.after)
    low, high = wilson_interval(len(flips), n)
    passed = low <= MOST
    words = (
        f"the candidate is wrong where {case.champion_name} was right on {counted(len(flips), 'sample')} of {n}: "
        f"{len(flips) / n:.3f} ({low:.3f} to {high:.3f}), {above_or_not(len(flips) / n, passed, MOST)}"
    )
    figures = {"num_flips": float(len(flips)), "num_samples": float(n), "rate": len(flips) / n, "low": low, "high": high}
    named = ", ".join(_name(case, key) for key in flips[:MAX_NAMED])
    notes = (f"negative flips that the candidate is surest of: {named}",) if flips else ()
    return Finding("negative_flips", passed, words, figures | {"most": MOST}, notes)


def flipped(case: Case) -> list[tuple[str, str]]:
    """The keys of the samples that the champion reads rightly and the candidate does not, those that it is surest of first."""
    keys = sorted(case.after)
    if TASK_FACTS[case.task].tells == "class":
        new, old = right(case.after, keys), right(case.before, keys)
    else:
        _, *answers = read_pair(case.task, case.after, case.before)
        new, old = (each.is_perfect for each in answers)
    lost = [keys[place] for place in np.flatnonzero(old & ~new)]
    return sorted(lost, key=lambda key: -case.after[key].probability)


def _name(case: Case, key: tuple[str, str]) -> str:
    row = case.after[key]
    name = case.files.get(row.digest, row.digest[:DIGEST_CHARS])
    if TASK_FACTS[case.task].tells == "tags":
        wrong = ", ".join(f"{true or 'nothing'} read as {told or 'nothing'}" for true, told, _ in row.pixels if true != told)
        return f"{name} ({wrong})"
    return f"{name} ({row.truth or 'nothing'} read as {row.predicted or 'nothing'}, {row.probability:.2f})"
