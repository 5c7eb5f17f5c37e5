"""Whether the candidate reads corrupted and attacked images as well as the champion does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from flows.gate.case import Case
from flows.gate.trials import Robustness
from flows.records import Finding

UNBOUNDED = "pgd unbounded"
# An attack that may change every pixel to anything leaves a model no more than this, unless its gradients mislead.
MOST_UNBOUNDED = 0.05
# PGD may fall behind FGSM, whose step it repeats, by no more than this.
MOST_BEHIND = 0.02


def robustness(case: Case) -> Finding | None:
    """The readings under corruption and under attack, against the champion's; None if they were not measured.

    It passes unless the candidate is worse than the champion beyond the 95 % interval of the paired difference, or an attack
    shows nothing since its gradients are masked (Athalye et al., ICML 2018).
    """
    if case.trials.robustness is None:
        return None
    new, old = case.trials.robustness
    masked, theirs = _masked(new), _masked(old) if old is not None else ""
    figures, words, passed = {"clean": _mean(new.right["clean"])}, list[str](), not masked
    for kind, names in _kinds(new).items():
        values = _by_sample(new, names)
        figures |= {kind: float(values.mean()), **{name.replace(" ", "_"): _mean(new.right[name]) for name in names}}
        said = f"{values.mean():.3f} {kind} ({len(values)} samples)"
        if old is not None:
            gain, low, high = _paired(values - _by_sample(old, names))
            figures |= {f"{kind}_gain": gain, f"{kind}_gain_low": low, f"{kind}_gain_high": high}
            said += f" against {values.mean() - gain:.3f} of {case.champion_name}: {gain:+.3f} ({low:+.3f} to {high:+.3f})"
            # Attacks that a champion's masked gradients keep off show nothing of it.
            passed = passed and (high >= 0 or (kind == "attacked" and bool(theirs)))
        words.append(said)
    if masked:
        words.append(f"the attacks show nothing, since gradients are masked: {masked}")
    notes = (f"the gradients of {case.champion_name} are masked: {theirs}",) if theirs else ()
    figures["gradients_masked"] = float(bool(masked))
    return Finding("robustness", passed, f"read rightly: {'; '.join(words)}", figures, notes)


def _kinds(readings: Robustness) -> Mapping[str, list[str]]:
    """What was done to images, by kind; attacks within a bound together."""
    attacks = [name for name in readings.right if name.startswith(("fgsm ", "pgd ")) and name != UNBOUNDED]
    corruptions = [name for name in readings.right if name not in ("clean", UNBOUNDED, *attacks)]
    return {"corrupted": corruptions, "attacked": attacks}


def _by_sample(readings: Robustness, names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Each sample's mean over what was done to it."""
    means: np.ndarray[tuple[int], np.dtype[np.float64]] = np.mean([readings.right[name] for name in names], axis=0)
    return means


def _paired(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t."""
    num, gain = len(differences), float(differences.mean())
    if num < 2:
        return gain, -1.0, 1.0
    reach = float(scipy.stats.t.ppf(0.975, num - 1)) * float(differences.std(ddof=1)) / math.sqrt(num)
    return gain, gain - reach, gain + reach


def _masked(readings: Robustness) -> str:
    """Why a model's gradients seem masked, '' if they do not."""
    right = readings.right
    behind = max(_mean(right[name]) - _mean(right[name.replace("pgd", "fgsm")]) for name in _kinds(readings)["attacked"])
    if (left := _mean(right[UNBOUNDED])) > MOST_UNBOUNDED:
        return f"PGD without a bound leaves {left:.3f} (at most {MOST_UNBOUNDED:g})"
    if behind > MOST_BEHIND:
        return f"PGD leaves {behind:.3f} more than FGSM (at most {MOST_BEHIND:g})"
    start, end = (_mean(readings.losses[place]) for place in ("start", "end"))
    return "" if end > start else f"PGD's loss does not grow ({start:.4f} to {end:.4f})"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
