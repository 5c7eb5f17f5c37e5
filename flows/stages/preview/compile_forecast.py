"""Which trainings of a plan would run compiled, by what was measured on this machine before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flows.compile_times import KeptCompileTimes
from flows.records import Work
from flows.stages.values import WorkPlan
from heads.phases import Phase, PhaseInputs

if TYPE_CHECKING:
    from heads.training.compile_payback import CompileCase


@dataclass(frozen=True)
class CompileForecast:
    """Whether a phase of a variant would be compiled: its full steps, and after how many of them that pays back.

    What was not measured on the machine that trains is None: the training then goes by its own first steps, and compiles if
    those left take `least_seconds` or more. `steps_to_pay_back` is None, too, if compiled steps were no shorter.
    """

    variant_id: str
    backbone: str
    phase: int
    num_frozen_stages: int
    num_steps: int
    least_seconds: float
    compile_seconds: float | None = None
    saved: float | None = None
    steps_to_pay_back: int | None = None
    is_compiled: bool | None = None


def forecast(work_plan: WorkPlan, left: Sequence[Work], *, device: str, is_here: bool) -> tuple[CompileForecast, ...]:
    """What the phases of those works would do that ask for compiling; touches nothing.

    `is_here` is whether this machine trains, on this kind of `device`.
    """
    asking = [work for work in left if work.variant.fit.compile]
    if not asking:
        return ()
    from heads.trunks.trunk import choose_taps

    return tuple(
        _forecast(work_plan, work, number, phase, inputs, device if is_here else None)
        for work in asking
        for number, (phase, inputs) in enumerate(choose_taps(work.variant).items())
    )


def _forecast(
    work_plan: WorkPlan, work: Work, number: int, phase: Phase, inputs: PhaseInputs, device: str | None
) -> CompileForecast:
    from heads.training.compile_payback import FIRST_GUESS, steps_to_pay_back

    case, num_steps = _case(work_plan, work, phase, inputs, device or "cpu")
    told = CompileForecast(
        variant_id=work.variant.variant_id,
        backbone=work.variant.backbone,
        phase=number,
        num_frozen_stages=phase.num_frozen_stages,
        num_steps=num_steps,
        least_seconds=FIRST_GUESS.compile_seconds / FIRST_GUESS.saved,
    )
    times = KeptCompileTimes().read(case) if device else None
    if times is None:
        return told
    steps = steps_to_pay_back(times, times.plain_step_seconds)
    return replace(
        told,
        compile_seconds=round(times.compile_seconds, 1),
        saved=round(times.saved, 3),
        steps_to_pay_back=None if math.isinf(steps) else math.ceil(steps),
        is_compiled=num_steps > steps,
    )


def _case(work_plan: WorkPlan, work: Work, phase: Phase, inputs: PhaseInputs, device: str) -> tuple[CompileCase, int]:
    """What the compile times of a work's phase are kept under, and how many full steps it has."""
    import torch

    from heads.data.loading import split_steps
    from heads.training.compiling import compile_case, device_words, full_steps
    from heads.trunks.trunk import is_probe

    workers = work_plan.plan.workers.group()
    # Probes are trained by one member each.
    num_ranks = 1 if is_probe(work.variant) else workers.count
    num_train = sum(sample.split == "train" for sample in work_plan.version.samples)
    steps = split_steps(torch.arange(num_train), work.variant.fit.batch_size, rank=0, num_ranks=num_ranks, least=2)
    batch_size, num_full = full_steps(steps)
    case = compile_case(
        work.variant,
        phase.num_frozen_stages,
        "features" if inputs.taps else "samples",
        batch_size=batch_size,
        num_ranks=num_ranks,
        device=device_words(torch.device(device), max(1, int(workers.cpus_per_worker))),
    )
    return case, phase.num_epochs * num_full
