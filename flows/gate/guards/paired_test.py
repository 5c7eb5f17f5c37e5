"""Whether the candidate is better than its opponent on the holdout, by a test whose level holds for a year of nights."""

from __future__ import annotations

import math

from flows.gate.account import DAYS_BETWEEN_LOOKS, DAYS_TOLERATED, WINDOW, least_z
from flows.gate.case import Case
from flows.gate.clusters import sampled_words
from flows.records import Finding
from flows.words import counted

# For how many labels more would decide: with a chance of 80 %.
POWER_Z = 0.84
# What is said of an undecided look is as coarse as this, since the same holdout is asked again.
COARSE_Z = 0.5


def paired_test(case: Case) -> Finding | None:
    """The test of a first model against a constant answer; of a champion's first challenger; weekly of the recipe's last seven.

    Between two looks, and where a weekly one does not decide, nothing is said of how well the holdout was read: who cannot see
    it cannot fit recipes to it. None where the policy has a margin, or new samples decide.
    """
    if case.margin is not None or case.fresh:
        return None
    match case.look:
        case "first":
            return _first_look(case)
        case "weekly":
            return _weekly_look(case)
        case "none":
            return gathering(case)


def _first_look(case: Case) -> Finding:
    evidence = case.evidence
    assert not isinstance(evidence, str), "a case that cannot be tested was not admitted"
    figures = {**evidence.figures, "look": 1.0} if case.champion else evidence.figures
    return Finding("paired_test", figures["p_value"] < figures["level"], evidence.words, figures, evidence.limits)


def gathering(case: Case, guard: str = "paired_test") -> Finding:
    """The finding on a night without a look: how far the evidence is, and nothing of how the holdout was read."""
    account, count = case.account, min(len(case.account.challengers) + 1, WINDOW)
    waits = [] if count == WINDOW else [f"challenger {count} of {WINDOW} of this recipe"]
    if (days := DAYS_BETWEEN_LOOKS - DAYS_TOLERATED - account.days_since_look) > 0:
        waits.append(f"the next look at the holdout is due in {counted(math.ceil(days), 'day')}")
    figures = {"num_challengers": float(count), "num_looks": float(account.num_looks)}
    return Finding(guard, False, f"gathering evidence against {case.champion_name}: {', and '.join(waits)}", figures)


def _weekly_look(case: Case) -> Finding:
    look, number = case.mean_look, case.account.num_looks + 1
    least = least_z(case.policy.alpha)
    figures = {"num_samples": float(look.num_samples), "look": float(number), "least_z": least}
    asked = f"look {number} at the challengers of {case.champion_name}: the mean of the last {WINDOW} of this recipe"
    if not case.is_decided:
        return Finding("paired_test", False, f"{asked} is not proven better{needed(look.z, least, look.num_samples)}", figures)
    figures |= {"gain": look.gain, "z": look.z, "newest_gain": look.newest_gain}
    words = (
        f"{asked} gains {look.gain:+.4f} on {sampled_words(look.num_samples, None, case.num_repeated)}, {look.z:.2f} standard "
        f"errors (at least {least:.1f}), and the newest {look.newest_gain:+.4f}"
    )
    return Finding("paired_test", True, words, figures)


def needed(z: float, least: float, num_samples: int) -> str:
    """How many labels more would decide, in words, as coarse as to tell nothing of the holdout."""
    # Without any spread nothing is known of how much more it takes.
    coarse = COARSE_Z * round(z / COARSE_Z) if math.isfinite(z) else 0.0
    if coarse < 1:
        return ", and nothing points that way yet"
    more = num_samples * ((least + POWER_Z) ** 2 / coarse**2 - 1)
    return f"; about {float(f'{more:.1g}'):,.0f} more labels would decide" if more >= 1 else ""
