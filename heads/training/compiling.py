"""A training that compiles its forward pass where that pays back, and an error that says what to do if torch.compile fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from heads.data.inputs import Inputs
from heads.data.loading import Batch, Loaders, Step
from heads.distributed import broadcast, num_ranks, rank, synchronise_gradients
from heads.errors import HeadsError
from heads.model.model import Model
from heads.phases import Phase
from heads.spec import Variant
from heads.training.compile_payback import (
    CompileCase,
    CompileRecords,
    CompileTimes,
    Reads,
    Stopwatch,
    is_enough,
    pays_back,
    typical,
)
from heads.training.session import Training


class Compilable(nn.Module):
    """The model's own parameters and modes, with a forward pass that can be compiled, which takes a minute at its first call.

    Only batches of `batch_size` samples run compiled, as almost all have: another compilation, of an epoch's last batch, would
    never pay back. Raises HeadsError if torch.compile fails, for example because no C++ compiler is installed.
    """

    def __init__(self, model: Model, batch_size: int, *, has_one_shape: bool) -> None:
        super().__init__()
        self.model, self.batch_size, self._has_one_shape = model, batch_size, has_one_shape
        self._compiled: Callable[[Inputs], dict[str, Tensor]] | None = None

    def compile_forward(self) -> None:
        """Has batches run compiled from now on."""
        # Isolated, since what this process compiled before must not decide which kernels come now, nor fill up a limit.
        dynamic = not self._has_one_shape
        self._compiled = torch.compile(self.model.forward, dynamic=dynamic, isolate_recompiles=True)  # type: ignore[call-overload]

    def go_back(self) -> None:
        """Has all batches run as they did before."""
        self._compiled = None

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        if self._compiled is None or inputs.num_samples != self.batch_size:
            logits: dict[str, Tensor] = self.model(inputs)
            return logits
        try:
            return self._compiled(inputs)
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().splitlines()[0]
                raise HeadsError(
                    f"torch.compile failed ({reason}); train with compile: false, or install a C++ compiler"
                ) from error
            raise


class CompilingTraining(Training):
    """A training that compiles a phase's forward pass if that pays back within the phase.

    The phase's first steps run plain and are timed. Then rank 0 decides for all, by the `records` of its machine. The first
    compiled steps are timed for these, and if they are no shorter, the others run plain again. What was decided in a phase's
    first epoch holds to the phase's end, and is in the checkpoints. Validation runs plain.
    """

    def __init__(
        self,
        model: Model,
        variant: Variant,
        loaders: Callable[[Phase], Loaders],
        records: CompileRecords | None = None,
        *,
        backbone_is_ready: bool = False,
    ) -> None:
        self._records = records
        # None once nothing is left to time.
        self._stopwatch: Stopwatch | None = None
        super().__init__(model, variant, loaders, backbone_is_ready=backbone_is_ready)

    def train_on(self, number: int, batch: Batch) -> None:
        stopwatch = self._stopwatch if batch.inputs.num_samples == self._pass.batch_size else None
        self._wait(stopwatch)
        start = perf_counter()
        super().train_on(number, batch)
        self._wait(stopwatch)
        if stopwatch:
            seconds = stopwatch.compiled if self.is_compiled else stopwatch.plain
            seconds.append(perf_counter() - start)
            if is_enough(seconds):
                self._review(stopwatch) if self.is_compiled else self._choose(stopwatch)

    def end_training(self) -> None:
        # An epoch of few steps is all that there is to go by: what its checkpoint says holds.
        if self._stopwatch and not self.is_compiled:
            self._choose(self._stopwatch)
        self._may_go_back = False
        super().end_training()

    def restore(self, path: Path) -> None:
        super().restore(path)
        # Trainings of earlier versions, whose epochs do not say it, compiled from the start.
        if self.history.epochs[-1].is_compiled is not False:
            self._compile()
        self._stopwatch = None

    def _choose(self, stopwatch: Stopwatch) -> None:
        """Compiles if it pays, by the plain steps so far; else nothing more is timed."""
        left = self.phases[self.phase].num_epochs * self._num_full - len(stopwatch.plain)
        # One file system may answer ranks differently, so the first asks for all.
        if self._agreed(lambda: pays_back(self._measured(), typical(stopwatch.plain), left)):
            self._compile()
        else:
            self._stopwatch = None

    def _review(self, stopwatch: Stopwatch) -> None:
        """Keeps what was measured, and goes back to plain steps if compiled ones are no shorter and the first epoch goes on."""
        self._stopwatch = None
        if self._records and rank() == 0:
            self._records.write(self._case, stopwatch.times)
        if self._may_go_back and self._agreed(lambda: stopwatch.times.saved <= 0):
            self._pass.go_back()
            self.is_compiled = False

    def _compile(self) -> None:
        self._pass.compile_forward()
        self.is_compiled = True

    def _measured(self) -> CompileTimes | None:
        return self._records.read(self._case) if self._records else None

    def _agreed(self, judge: Callable[[], bool]) -> bool:
        """What rank 0 judges, on every rank; all must call it."""
        judged = rank() == 0 and judge()
        return bool(broadcast(torch.tensor([float(judged)], device=self.device)).item())

    def _wait(self, stopwatch: Stopwatch | None) -> None:
        """Has a GPU end its work, if that is timed."""
        if stopwatch and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def _case(self) -> CompileCase:
        num_frozen, reads = self.phases[self.phase].num_frozen_stages, self.loaders.train.num_forwarded
        return compile_case(
            self.variant,
            num_frozen,
            "samples" if reads else "features",
            batch_size=self._pass.batch_size,
            num_ranks=num_ranks(),
            device=device_words(self.device, torch.get_num_threads()),
        )

    def _enter(self, phase: int, backbone_is_ready: bool = False) -> None:
        super()._enter(phase, backbone_is_ready)
        batch_size, self._num_full = full_steps(self.loaders.train.steps)
        self._pass = Compilable(self.model, batch_size, has_one_shape=self.variant.modality == "image")
        self._stopwatch = Stopwatch()
        self._may_go_back, self.is_compiled = True, False
        # Of two wrappers each would exchange the gradients.
        self.forward = self.model
        self.forward = synchronise_gradients(self._pass, self.device)


def training_of(
    model: Model,
    variant: Variant,
    loaders: Callable[[Phase], Loaders],
    records: CompileRecords | None = None,
    *,
    backbone_is_ready: bool = False,
) -> Training:
    """The training of a variant, which may compile its forward pass if the variant asks for that."""
    if variant.fit.compile:
        return CompilingTraining(model, variant, loaders, records, backbone_is_ready=backbone_is_ready)
    return Training(model, variant, loaders, backbone_is_ready=backbone_is_ready)


def compile_case(
    variant: Variant, num_frozen_stages: int, reads: Reads, *, batch_size: int, num_ranks: int, device: str
) -> CompileCase:
    """What the compile times of a phase of a variant are kept under, with this process's version of torch."""
    return CompileCase(
        backbone=variant.backbone,
        heads="+".join(head.design for head in variant.heads),
        num_frozen_stages=num_frozen_stages,
        reads=reads,
        batch_size=batch_size,
        sample_size=variant.sample_size,
        num_ranks=num_ranks,
        precision=variant.fit.precision,
        device=device,
        torch=torch.__version__,
    )


def device_words(device: torch.device, num_threads: int) -> str:
    """A device in words that differ where its speed does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}, {num_threads} threads"


def full_steps(steps: Sequence[Step]) -> tuple[int, int]:
    """How many samples of this rank a full step has, as all of an epoch's have but the last ones; and how many are full."""
    sizes = [len(step.here) for step in steps]
    return sizes[0], sizes.count(sizes[0])
