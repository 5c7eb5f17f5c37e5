"""The epochs of many variants that train together on the same stored features, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heads.data.loading import Loaders
from heads.distributed import single_process
from heads.errors import TrainingDiverged
from heads.fused.stack import FusedGroups
from heads.model.model import Model
from heads.spec import Variant
from heads.training.random_state import RNGState
from heads.training.session import Training
from heads.training.state import Epoch, TrainingOutcome


@dataclass(frozen=True)
class TrainingRequest:
    """One of several trainings on the same features, and what is called in its course.

    `on_epoch` gets each epoch and a function that saves a checkpoint, `on_end` the outcome or the error. With `on_pause` the
    training pauses after `num_epochs` in place of an end, and `on_pause` gets its epochs and the function. `resume` is a
    checkpoint to go on from.
    """

    model: Model
    variant: Variant
    on_epoch: Callable[[Epoch, Callable[[Path], None]], None]
    on_end: Callable[[TrainingOutcome | TrainingDiverged], None]
    num_epochs: int | None = None
    on_pause: Callable[[Sequence[Epoch], Callable[[Path], None]], None] | None = None
    resume: Path | None = None


def train_together(requests: Sequence[TrainingRequest], loaders: Loaders) -> None:
    """Trains variants with fully frozen backbones on the same batches of stored features, fused as if it were alone.

    Each has its own head, optimizer, rate, random state and early stopping, and ends as `train` would end it on these features:
    in float32 on a CPU to the bit, with as many threads. They share seed, batch size and features. Trainings resumed from an
    earlier epoch than others catch up with them first. This process trains them whole, whatever other ranks do. Raises
    CheckpointError, before any trains, if one cannot be resumed.
    """
    with single_process():
        active, stacks = [_Fused(request, loaders) for request in requests], FusedGroups()
        while active := [fused for fused in active if fused.goes_on()]:
            first = min(len(fused.training.history.epochs) for fused in active)
            _run_epoch([fused for fused in active if len(fused.training.history.epochs) == first], loaders, stacks)


class _Fused:
    """A requested training among others on the same batches."""

    def __init__(self, request: TrainingRequest, loaders: Loaders) -> None:
        self.request, self.training = request, Training(request.model, request.variant, lambda _: loaders)
        self._failed = False
        if request.resume:
            self.training.restore(request.resume)

    def goes_on(self) -> bool:
        """Whether another epoch follows; if none does, the request's `on_end` or `on_pause` is called."""
        if self._failed:
            return False
        if self.training.history.ended:
            self._end(self.training.finish())
            return False
        if self.request.on_pause and len(self.training.history.epochs) == self.request.num_epochs:
            self.request.on_pause(self.training.history.epochs, self.training.save)
            return False
        return True

    def end_epoch(self) -> None:
        """Ends the epoch and calls `on_epoch`, or `on_end` if the training diverged."""
        try:
            self.request.on_epoch(self.training.end_epoch(), self.training.save)
        except TrainingDiverged as error:
            self._failed = True
            self._end(error)

    def _end(self, end: TrainingOutcome | TrainingDiverged) -> None:
        # A view would keep its whole stack in memory.
        for weight in self.training.model.heads.parameters():
            weight.data = weight.data.clone()
        self.request.on_end(end)


def _run_epoch(active: Sequence[_Fused], loaders: Loaders, stacks: FusedGroups) -> None:
    first = active[0].training
    for fused in active:
        fused.training.begin_epoch(num_together=len(active))
    # All begin an epoch with the random state of their common seed; then fused stack or training draws from one of its own.
    parties = [(party, RNGState(loaders.train.device)) for party in stacks.of([fused.training for fused in active])]
    loaders.train.set_epoch(first.index, first.variant.fit.seed)
    for number, batch in enumerate(loaders.train):
        for party, random in parties:
            with random:
                party.train_on(number, batch)
    for party, _ in parties:
        party.end_training()
    for batch in loaders.val:
        for party, _ in parties:
            party.validate_on(batch)
    for fused in active:
        fused.end_epoch()
