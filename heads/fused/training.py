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
    """One of the variants that train together: its model, who is told of its epochs and of its end, and where it goes on from.

    One that pauses after `num_epochs` hands `on_pause` its epochs and, as `on_epoch` gets it, a function that saves a checkpoint.
    """

    model: Model
    variant: Variant
    on_epoch: Callable[[Epoch, Callable[[Path], None]], None]
    on_end: Callable[[TrainingOutcome | TrainingDiverged], None]
    num_epochs: int | None = None
    on_pause: Callable[[Sequence[Epoch], Callable[[Path], None]], None] | None = None
    resume: Path | None = None


def train_together(requests: Sequence[TrainingRequest], loaders: Loaders) -> None:
    """Trains variants with fully frozen backbones on the same batches of stored features, each as if it were alone.

    Each has its own head, optimizer, rate, random stream and early stop, and ends with what `train` gives it on these features:
    in float32 on a CPU to the bit, with as many threads. They share seed, batch size and what is read. Those that go on from an
    earlier epoch than others catch up with them first.
    This process trains them whole, whatever other ranks do. Raises CheckpointError, before any trains, where one cannot be
    resumed.
    """
    with single_process():
        active, stacks = [_Fused(request, loaders) for request in requests], FusedGroups()
        while active := [each for each in active if each.goes_on()]:
            first = min(len(each.training.history.epochs) for each in active)
            _run_epoch([each for each in active if len(each.training.history.epochs) == first], loaders, stacks)


class _Fused:
    """A variant among others on the same batches."""

    def __init__(self, request: TrainingRequest, loaders: Loaders) -> None:
        self.request, self.training = request, Training(request.model, request.variant, lambda _: loaders)
        self._failed = False
        if request.resume:
            self.training.restore(request.resume)

    def goes_on(self) -> bool:
        """Whether there is another epoch; tells the request's end where there is none."""
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
        """Tells the epoch, or that it diverged."""
        try:
            self.request.on_epoch(self.training.end_epoch(), self.training.save)
        except TrainingDiverged as error:
            self._failed = True
            self._end(error)

    def _end(self, end: TrainingOutcome | TrainingDiverged) -> None:
        # Views would keep all of the stack that they are of in memory.
        for weight in self.training.model.heads.parameters():
            weight.data = weight.data.clone()
        self.request.on_end(end)


def _run_epoch(active: Sequence[_Fused], loaders: Loaders, stacks: FusedGroups) -> None:
    first = active[0].training
    for each in active:
        each.training.begin_epoch(num_together=len(active))
    # Each begins an epoch with the random state of their seed: from here on who draws goes on with a stream of its own.
    parties = [(party, RNGState(loaders.train.device)) for party in stacks.of([each.training for each in active])]
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
    for each in active:
        each.end_epoch()
