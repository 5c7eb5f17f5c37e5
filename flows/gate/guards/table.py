"""The closed tables of guards, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flows.gate.case import Case
from flows.gate.guards.admission import comparable, not_withdrawn, testable
from flows.gate.guards.baseline import baseline
from flows.gate.guards.calibration import calibration
from flows.gate.guards.fresh_labels import fresh_labels
from flows.gate.guards.latency import latency
from flows.gate.guards.leaks import leaks
from flows.gate.guards.loads import loads
from flows.gate.guards.min_gain import min_gain
from flows.gate.guards.negative_flips import negative_flips
from flows.gate.guards.non_inferior import non_inferior
from flows.gate.guards.paired_test import paired_test
from flows.gate.guards.robustness import robustness
from flows.gate.guards.worst_class import worst_class
from flows.gate.guards.worst_group import worst_group
from flows.records import Finding


class Guard(Protocol):
    """A rule of promotion."""

    def __call__(self, case: Case, /) -> Finding | None:
        """The guard's finding on a case; None if it does not apply to it."""
        ...


# If one of these does not pass, the others are not called.
ADMISSION: Mapping[str, Guard] = {"comparable": comparable, "not_withdrawn": not_withdrawn, "testable": testable}
# All of these have to pass.
GUARDS: Mapping[str, Guard] = {
    "paired_test": paired_test,
    "non_inferior": non_inferior,
    "fresh_labels": fresh_labels,
    "min_gain": min_gain,
}
# Of these a plan says which may block a promotion, which only warn, and which are off. They are called once the test has decided:
# before that a verdict tells nothing of how the holdout was read.
SCORE_GUARDS: Mapping[str, Guard] = {
    "baseline": baseline,
    "worst_class": worst_class,
    "worst_group": worst_group,
    "calibration": calibration,
    "negative_flips": negative_flips,
}
# As these, which read what is measured of a candidate that all of the others let pass.
TRIAL_GUARDS: Mapping[str, Guard] = {
    "leaks": leaks,
    "latency": latency,
    "loads": loads,
    "robustness": robustness,
}
