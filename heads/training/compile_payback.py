"""Whether to compile a training's forward pass pays back within the steps left. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, Protocol

from heads.spec import Precision

Reads = Literal["samples", "features"]
# Libraries choose kernels and memory in the first steps; a step's time is the median of those after them.
NUM_WARM_UPS, NUM_TIMED = 2, 5


@dataclass(frozen=True)
class CompileCase:
    """All that the times of a compilation depend on; `batch_size` is that of one rank, `heads` are the heads' designs."""

    backbone: str
    heads: str
    num_frozen_stages: int
    reads: Reads
    batch_size: int
    sample_size: int
    num_ranks: int
    precision: Precision
    device: str
    torch: str


@dataclass(frozen=True)
class CompileTimes:
    """The seconds that a compilation took, and those of a training step before it and after it."""

    compile_seconds: float
    plain_step_seconds: float
    compiled_step_seconds: float

    @property
    def saved(self) -> float:
        """The share of a step's time that compiling it saves; below 0 if it costs time."""
        return 1 - self.compiled_step_seconds / self.plain_step_seconds


# Where nothing was measured yet: a minute to compile (ResNet-18 took 54 s on an H100), for steps that are a fifth shorter. So a
# phase is compiled that has five minutes left.
FIRST_GUESS = CompileTimes(60.0, 1.0, 0.8)


class CompileRecords(Protocol):
    """The compile times that a machine has measured."""

    def read(self, case: CompileCase) -> CompileTimes | None:
        """The times last measured of this case, None if there are none."""
        ...

    def write(self, case: CompileCase, times: CompileTimes) -> None:
        """Keep the times of this case for later trainings."""
        ...


def steps_to_pay_back(times: CompileTimes, step_seconds: float) -> float:
    """After how many steps, which take so many seconds plain, a compilation has saved what it takes; infinite if it never has."""
    saved = step_seconds * times.saved
    return times.compile_seconds / saved if saved > 0 else math.inf


def pays_back(measured: CompileTimes | None, step_seconds: float, num_left: int) -> bool:
    """Whether a compilation pays back within `num_left` steps, by what was measured before, or else by `FIRST_GUESS`."""
    return num_left > steps_to_pay_back(measured or FIRST_GUESS, step_seconds)


@dataclass
class Stopwatch:
    """The seconds of a phase's first steps: plain ones, then compiled ones."""

    plain: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)

    @property
    def times(self) -> CompileTimes:
        """What the compilation took and changed, by enough steps of both kinds."""
        step_seconds, first = typical(self.compiled), self.compiled[:NUM_WARM_UPS]
        return CompileTimes(max(0.0, sum(first) - len(first) * step_seconds), typical(self.plain), step_seconds)


def is_enough(seconds: Sequence[float]) -> bool:
    """Whether these are enough steps to go by."""
    return len(seconds) >= NUM_WARM_UPS + NUM_TIMED


def typical(seconds: Sequence[float]) -> float:
    """The seconds of a step, from those of the first steps, at least one."""
    return median(seconds[NUM_WARM_UPS:] or seconds[-1:])
