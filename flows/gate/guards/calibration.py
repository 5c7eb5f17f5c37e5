"""Whether the candidate's probabilities are as often right as they say."""

from __future__ import annotations

from flows.gate.case import Case
from flows.gate.evidence import above_or_not
from flows.gate.reliability import calibration_error, gaps_of
from flows.records import Finding

# The greatest error that passes, and by how much it may exceed the champion's: less than that nobody notices.
MOST = 0.05
MOST_ABOVE = 0.01


def calibration(case: Case) -> Finding | None:
    """The expected calibration error against a bound, and against the champion's, if there is one; None of masks.

    It passes unless the error is more than chance gives on so few samples, and, beyond its 95 % interval, above the bound or
    above the champion's by more than a hundredth.
    """
    gaps = gaps_of(case.task, case.after, case.before if case.champion else case.after)
    if gaps is None:
        return None
    own, above = calibration_error(*gaps, case.seed("calibration"))
    chance = gaps[0].chance(case.seed("chance"))
    figures = {"ece": own.value, "ece_low": own.low, "ece_high": own.high, "most": MOST, "chance": chance}
    holds, bounded = own.value <= chance, own.low <= MOST
    few = f", chance alone gives up to {chance:.3f} on so few samples" if holds and own.value > MOST else ""
    # The error is greater by chance on few samples, which the interval undoes: it may leave the error itself out.
    words = (
        f"calibration error (ECE) {own.value:.3f} (bias-corrected {own.low:.3f} to {own.high:.3f}), "
        f"{above_or_not(own.value, holds or bounded, MOST)}{few}"
    )
    if not case.champion:
        return Finding("calibration", holds or bounded, words, figures)
    figures |= {"champion_ece": own.value - above.value, "above": above.value, "above_low": above.low, "above_high": above.high}
    words += (
        f"; against {own.value - above.value:.3f} of {case.champion_name}: "
        f"{above.value:+.3f} (bias-corrected {above.low:+.3f} to {above.high:+.3f})"
    )
    passed = holds or (bounded and above.low <= MOST_ABOVE)
    return Finding("calibration", passed, words, figures | {"most_above": MOST_ABOVE})
