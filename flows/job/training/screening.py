"""Screening of variants that have a probe phase: all train through it, and only the best go on to fine-tune.

One rung of successive halving (Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016), placed where it costs next to nothing: the probes train together on stored features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flows.job.job import Job, Screening
from flows.job.training import results
from flows.job.trunks import JobFeatures
from flows.records import Work
from heads.model.model import build_model
from heads.phases import compile_policy
from heads.training import loop
from heads.trunks.trunk import stored_taps


def probes_first(job: Job, work: Work) -> bool:
    """Whether the work is screened: one whose probe phase cannot read the feature store just trains."""
    return job.screening is not None and work.is_screened and compile_policy(work.variant)[0] in stored_taps(work.variant)


def rank_probes(job: Job, works: Sequence[Work]) -> list[tuple[Work, float]]:
    """The screened works whose probe phase is done, best first, with the measure that ranks them; ties keep the plan's order."""
    assert job.screening is not None
    name = f"val/{job.screening.metric}"
    probes = [(work, job.work_folder(work).read_probe()) for work in works]
    scored = [(work, float(metrics.get(name, math.nan))) for work, metrics in probes if metrics is not None]
    return sorted(scored, key=lambda one: -one[1] if math.isfinite(one[1]) else math.inf)


def screen_out(job: Job, features: JobFeatures, work: Work, place: int, num_rivals: int, value: float) -> None:
    """Write a work's result as its probe phase left it, with the reason why it goes no further."""
    screening = job.screening
    assert screening is not None
    sets = [features.splits.open(split, work.variant, work.weights.path) for split in ("train", "val")]
    loaders = features.loaders(work, *sets)[compile_policy(work.variant)[0]]
    model = build_model(work.variant, job.classes, work.weights.path)
    ended = _reason(screening, place, num_rivals, value)
    checkpoint = job.work_folder(work).fetch_probe_checkpoint()
    assert checkpoint is not None, "its measures are written after it"
    outcome = loop.conclude(model, work.variant, loaders, checkpoint, ended)
    results.write_result(job, work, model, outcome)


def _reason(screening: Screening, place: int, num_rivals: int, value: float) -> str:
    return (
        f"screened out after the probe phase: number {place} of {num_rivals} by val/{screening.metric} ({value:.4f}), "
        f"and the best {screening.keep} go on"
    )
