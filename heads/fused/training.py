"""The epochs of many variants that train together on the same stored features, each as if it were alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from heads.catalogue import TASK_FACTS
from heads.data.loading import Loaders
from heads.distributed import single_process
from heads.errors import TrainingDiverged
from heads.fused.cpu_heads import CpuHeads
from heads.fused.fused_heads import Descriptors, FusedHeads
from heads.fused.gpu_heads import GpuHeads
from heads.model.model import Model
from heads.model.precision import is_exact
from heads.spec import Fit, Variant
from heads.training.compile_payback import CompileRecords
from heads.training.compiling import training_of
from heads.training.metrics import EpochTotals
from heads.training.random_state import RNGState
from heads.training.session import Training
from heads.training.state import Epoch, TrainingOutcome

# Stacked variants may differ in what happens between a gradient and the next weights, and in when training ends.
OWN_FIELDS = (
    "epochs",
    "learning_rate",
    "weight_decay",
    "patience",
    "optimiser",
    "schedule",
    "warmup",
    "gradient_clip",
    "ema",
    "stage_decay",
)
STACKED_DESIGNS = ("linear", "mlp")
STACKED_ACTIVATIONS = ("gelu", "relu")
OWN_DEFAULTS = {name: Fit.model_fields[name].default for name in OWN_FIELDS}


@dataclass(frozen=True)
class TrainingRequest:
    """One of several trainings on the same features, and what is called in its course.

    `on_epoch` gets each epoch and a function that saves a checkpoint, `on_end` the outcome or the error. With `on_pause` the
    training pauses after `num_epochs` in place of an end, and `on_pause` gets its epochs and the function. `resume` is a
    checkpoint to go on from, `compile_records` the compile times of this machine.
    """

    model: Model
    variant: Variant
    on_epoch: Callable[[Epoch, Callable[[Path], None]], None]
    on_end: Callable[[TrainingOutcome | TrainingDiverged], None]
    num_epochs: int | None = None
    on_pause: Callable[[Sequence[Epoch], Callable[[Path], None]], None] | None = None
    resume: Path | None = None
    compile_records: CompileRecords | None = None


def train_together(requests: Sequence[TrainingRequest], loaders: Loaders) -> None:
    """Trains variants with fully frozen backbones on the same batches of stored features, each as if it were alone.

    Each has its own head, optimizer, rate, random state and early stopping, and ends as `train` would end it on these features:
    in float32 on a CPU to the bit, with as many threads. They share seed, batch size and features. Trainings resumed from an
    earlier epoch than others catch up with them first. This process trains them whole, whatever other ranks do. Raises
    CheckpointError, before any trains, if one cannot be resumed.
    """
    with single_process():
        active, groups = _prepare(requests, loaders), FusedGroups()
        while active := [fused for fused in active if fused.goes_on()]:
            first = min(len(fused.training.history.epochs) for fused in active)
            _run_epoch([fused for fused in active if len(fused.training.history.epochs) == first], loaders, groups)


def _prepare(requests: Sequence[TrainingRequest], loaders: Loaders) -> list[_Fused]:
    ready: set[tuple[nn.Module, bool]] = set()
    active = []
    for request in requests:
        backbone = request.model.backbone, request.variant.fit.channels_last
        active.append(_Fused(request, loaders, backbone in ready))
        ready.add(backbone)
    return active


class _Fused:
    """A requested training among others on the same batches."""

    def __init__(self, request: TrainingRequest, loaders: Loaders, backbone_is_ready: bool) -> None:
        self.request = request
        self.training = training_of(
            request.model, request.variant, lambda _: loaders, request.compile_records, backbone_is_ready=backbone_is_ready
        )
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

    def end_epoch(self, totals: EpochTotals) -> None:
        """Ends the epoch and calls `on_epoch`, or `on_end` if the training diverged."""
        try:
            self.request.on_epoch(self.training.end_epoch(totals), self.training.save)
        except TrainingDiverged as error:
            self._failed = True
            self._end(error)

    def _end(self, end: TrainingOutcome | TrainingDiverged) -> None:
        # A view would keep its whole stack in memory.
        for weight in self.training.model.heads.parameters():
            weight.data = weight.data.clone()
        self.request.on_end(end)


def _run_epoch(active: Sequence[_Fused], loaders: Loaders, groups: FusedGroups) -> None:
    first = active[0].training
    for fused in active:
        fused.training.begin_epoch(num_together=len(active))
    learners = groups.of([fused.training for fused in active])
    for learner in learners:
        if isinstance(learner, FusedHeads):
            learner.begin_epoch()
    # All begin an epoch with the random state of their common seed; then fused stack or training draws from one of its own.
    states = [RNGState(loaders.train.device) if len(learners) > 1 else nullcontext() for _ in learners]
    loaders.train.set_epoch(first.index, first.variant.fit.seed)
    for number, batch in enumerate(loaders.train):
        for learner, random in zip(learners, states, strict=True):
            with random:
                learner.train_on(number, batch)
    for learner in learners:
        learner.end_training()
    for batch in loaders.val:
        for learner in learners:
            learner.validate_on(batch)
    requested = {fused.training: fused for fused in active}
    for learner in learners:
        if isinstance(learner, FusedHeads):
            for training, totals in zip(learner.trainings, learner.totals(), strict=True):
                requested[training].end_epoch(totals)
        else:
            requested[learner].end_epoch(learner.totals())


class FusedGroups:
    """The running trainings in groups that learn as one; regrouped only when a training ends or gets a new optimizer."""

    def __init__(self) -> None:
        self._optimizers: list[torch.optim.Optimizer] = []
        self._groups: list[FusedHeads | Training] = []

    def of(self, trainings: Sequence[Training]) -> list[FusedHeads | Training]:
        """The trainings, all of fully frozen backbones: in stacks if they can share one, else by themselves."""
        optimizers = [training.optimizer for training in trainings]
        if optimizers != self._optimizers:
            self._optimizers, self._groups = optimizers, _stack(trainings)
        return self._groups


def _stack(trainings: Sequence[Training]) -> list[FusedHeads | Training]:
    alike: dict[Hashable, list[Training]] = defaultdict(list)
    for number, training in enumerate(trainings):
        alike[_shape(training) or number].append(training)
    descriptors = Descriptors()
    kind = CpuHeads if is_exact(trainings[0].device) else GpuHeads
    # A stack of one as well, so that a variant's result depends on no neighbour.
    return [group[0] if isinstance(shape, int) else kind(group, descriptors) for shape, group in alike.items()]


def _shape(training: Training) -> Hashable:
    """What trainings in one stack have in common; None if this one cannot be stacked."""
    variant, fit = training.variant, training.variant.fit
    # Decoders keep batch statistics, and other designs and activations compute an element by its place in the stack.
    of_words = any(TASK_FACTS[head.task].tells == "tags" for head in variant.heads)
    strange = any(head.design not in STACKED_DESIGNS for head in variant.heads) or fit.mlp_activation not in STACKED_ACTIVATIONS
    # What weighs tokens is learned, too.
    strange = strange or fit.pooling == "attention"
    # Learned weights of losses, and scalers of gradients, belong to one training.
    if strange or of_words or fit.head_weights != "equal" or fit.precision == "fp16" or fit.compile:
        return None
    common = variant.model_copy(update={"freeze": "all", "fit": fit.model_copy(update=OWN_DEFAULTS)})
    # What is done to all rows of a matrix at once is of one kind.
    return (common,) if is_exact(training.device) else (common, fit.optimiser, bool(fit.ema))
