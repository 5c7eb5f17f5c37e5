"""What is told of the holdout while it keeps silent about a champion's challengers. Pure.

Who sees each night how well the holdout was read can choose recipes by it, and then its samples are no longer a test.
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.records import Verdict

# Two models of 2,000 samples, of which they read 6 % differently, are 0.0055 apart by luck: hundredths hide that.
NUM_DIGITS = 2


def is_silent(verdict: Verdict, *, has_champion: bool) -> bool:
    """Whether a verdict keeps how well the holdout was read to itself: on a challenger that is not proven to be better."""
    return has_champion and "gain" not in verdict.figures


def told_measures(measures: Mapping[str, float], *, silent: bool) -> dict[str, float]:
    """The measures on the holdout as they may be shown: to hundredths while it is silent."""
    return {name: round(value, NUM_DIGITS) if silent else value for name, value in measures.items()}
