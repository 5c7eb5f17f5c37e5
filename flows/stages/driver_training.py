"""Whether a training needs a worker group: heads on stored features are often trained before one would have started."""

from __future__ import annotations

from collections.abc import Sequence

from flows.records import Work
from flows.settings import Settings
from flows.stages.values import WorkPlan

# What a group costs on two cores: controller and workers start, load torch, connect, end (tests/benchmarks/start_up.py).
GROUP_SECONDS = 20.0


def trains_in_driver(settings: Settings, work_plan: WorkPlan, left: Sequence[Work]) -> bool:
    """Whether the job's driver trains the works that are left of a plan by itself, in place of its workers.

    It does on a local Ray without GPUs, if only heads are trained, on stored features, and one process is done with it before
    several would be, by stated rates. On a cluster the driver's machine is not meant to train.
    """
    from heads.trunks.trunk import is_probe, stored_taps

    workers = work_plan.plan.workers.group()
    if settings.ray_address or workers.gpus_per_worker or not all(is_probe(work.variant) for work in left):
        return False
    if workers.count == 1:
        return True
    if any(tap.form == "map" for work in left for taps in stored_taps(work.variant).values() for tap in taps):
        # What heads compute on maps is more than the estimate knows.
        return False
    from flows.stages.preview.cost_estimate import estimate_costs

    saved = estimate_costs(settings, work_plan, calibrate=False).estimate.seconds * (workers.count - 1)
    return saved < GROUP_SECONDS
