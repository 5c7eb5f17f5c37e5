"""The trials of a candidate that could be promoted: what no score table tells, measured only on such a night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flows.gate.trials import Trials
from flows.stages.session import RetrainingSession
from flows.stages.trials.leaks import find_leaks
from flows.stages.trials.robustness import measure_robustness
from flows.stages.trials.serving import collect_latency, collect_loads
from flows.stages.values import Contest, WorkPlan


class Collector(Protocol):
    """A measurement of the candidate, and of the champion, if there is one."""

    def __call__(self, session: RetrainingSession, work_plan: WorkPlan, scores: Contest, /) -> Trials:
        """The trials with this measurement alone."""
        ...


# The guard that reads a measurement → how it is made; guards that are not named read the score tables.
COLLECTORS: Mapping[str, Collector] = {
    "leaks": find_leaks,
    "loads": collect_loads,
    "latency": collect_latency,
    "robustness": measure_robustness,
}
# One line after the other; those of a line side by side, each in processes of its own. Seconds are measured with nothing beside.
TOGETHER = (("leaks", "loads"), ("latency",), ("robustness",))


def collect_trials(session: RetrainingSession, work_plan: WorkPlan, scores: Contest) -> Trials:
    """The measurements that the plan's guards need; those of guards that are off are left out."""
    chosen = session.plan.promotion.guards.severities
    found: list[Trials] = []
    for guards in TOGETHER:
        collectors = [COLLECTORS[guard] for guard in guards if guard in COLLECTORS and chosen[guard] != "off"]
        found += _side_by_side(collectors, session, work_plan, scores) if collectors else []
    return Trials(**{name: value for one in found for name, value in vars(one).items() if value is not None})


def _side_by_side(
    collectors: Sequence[Collector], session: RetrainingSession, work_plan: WorkPlan, scores: Contest
) -> list[Trials]:
    # The first in this thread, which alone an interrupt reaches: one that runs a job stops it then.
    here, *beside = collectors
    with ThreadPoolExecutor(len(collectors), thread_name_prefix="trial") as pool:
        begun = [pool.submit(collect, session, work_plan, scores) for collect in beside]
        return [here(session, work_plan, scores), *(one.result() for one in begun)]
