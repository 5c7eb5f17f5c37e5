"""The trials of a candidate that could be promoted: what no score table tells, measured only on such a night."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flows.gate.trials import Trials
from flows.stages.leaks import find_leaks
from flows.stages.robustness import measure_robustness
from flows.stages.serving_trials import collect_latency, collect_loads
from flows.stages.session import RetrainingSession
from flows.stages.values import Contest, WorkPlan


class Collector(Protocol):
    """A measurement of the candidate, and of the champion, if there is one."""

    def __call__(self, session: RetrainingSession, work_plan: WorkPlan, scores: Contest, trials: Trials, /) -> Trials:
        """The trials with this measurement added."""
        ...


# The guard that reads a measurement → how it is made; guards that are not named read the score tables.
COLLECTORS: Mapping[str, Collector] = {
    "leaks": find_leaks,
    "loads": collect_loads,
    "latency": collect_latency,
    "robustness": measure_robustness,
}


def collect_trials(session: RetrainingSession, work_plan: WorkPlan, scores: Contest) -> Trials:
    """The measurements that the plan's guards need; those of guards that are off are left out."""
    trials, chosen = Trials(), session.plan.promotion.guards.severities
    for guard, collect in COLLECTORS.items():
        if chosen[guard] != "off":
            trials = collect(session, work_plan, scores, trials)
    return trials
