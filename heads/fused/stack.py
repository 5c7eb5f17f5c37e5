"""Heads of one shape trained as one: their weights in stacks, and one forward and backward pass for all of them.

After "HFTA", Wang et al., "Horizontally Fused Training Array", MLSys 2021. Features are read, pooled and normalised once for
all; rates, optimizers, clipping and early stopping stay each training's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from heads.data.loading import Batch
from heads.fused import alignment
from heads.fused.linear import fused_forward
from heads.fused.optimizer import FusedOptimizer, clip_each
from heads.model.model import Model
from heads.model.precision import autocast
from heads.spec import Fit, Variant
from heads.training.metrics import summed_losses
from heads.training.session import Training

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


class FusedHeads:
    """Trainings that go through epochs together, with the same result as each alone: in float32 on a CPU to the bit.

    Their models differ in the values of their heads' weights alone. These become views of the stack, so that an update of one
    updates the stack. All draw the same dropout, as each would alone from the seed that they share.
    """

    def __init__(self, trainings: Sequence[Training], descriptors: _Descriptors) -> None:
        self.trainings, self._first, self._descriptors = tuple(trainings), trainings[0], descriptors
        names = {weight: name for name, weight in self._first.model.named_parameters()}
        # In the optimizer's order, in which a training alone adds up its gradients' norm.
        self._names = [names[weight] for group in self._first.optimizer.param_groups for weight in group["params"]]
        owned = [[training.model.get_parameter(name) for name in self._names] for training in trainings]
        self._weights = [alignment.stack([weight.detach() for weight in same]) for same in zip(*owned, strict=True)]
        for place, (training, own) in enumerate(zip(trainings, owned, strict=True)):
            for weight, stacked in zip(own, self._weights, strict=True):
                weight.data = stacked[place]
            if training.average:
                training.average.find(training.model)
        self._joint = FusedOptimizer([training.optimizer for training in trainings])
        limits = [training.variant.fit.gradient_clip or torch.inf for training in trainings]
        self._limits = torch.tensor(limits, device=self._first.device)
        self._gradients: list[Tensor] = []
        self._kept: list[Tensor] = []

    def train_on(self, number: int, batch: Batch) -> None:
        """Trains all on the epoch's batch of this number."""
        weights = [stacked.detach().requires_grad_() for stacked in self._weights]
        logits = self._logits(self._first.model, weights, batch)
        losses = {
            target: summed_losses(self._first.criteria[target], rows, batch.labels[target], batch.weights)
            for target, rows in logits.items()
        }
        gradients = torch.autograd.grad(self._first.balance(losses, batch.num_labels, updates=batch.updates), weights)
        for place, training in enumerate(self.trainings):
            training.trained.take(_at(logits, place), batch.labels, batch.weights, _at(losses, place))
        if self._gradients:
            for mine, more in zip(self._gradients, gradients, strict=True):
                mine.add_(more)
        else:
            self._gradients = list(gradients)
        if batch.updates:
            self._update(number // self._first.variant.fit.accumulate)

    def end_training(self) -> None:
        """Makes ready for validation, after the epoch's last training batch."""
        for training in self.trainings:
            training.end_training()
        kept = [[training.kept.get_parameter(name).detach() for name in self._names] for training in self.trainings]
        self._kept = [alignment.stack(same) for same in zip(*kept, strict=True)]

    @torch.no_grad()
    def validate_on(self, batch: Batch) -> None:
        """Takes a validation batch into each training's measures of the epoch."""
        logits = self._logits(self._first.kept, self._kept, batch)
        for place, training in enumerate(self.trainings):
            training.measured.add(_at(logits, place), batch.labels, batch.weights)

    def _update(self, number: int) -> None:
        for training in self.trainings:
            training.set_rates(number)
        clip_each(self._gradients, self._limits)
        self._joint.step(self._gradients)
        self._gradients = []
        for training in self.trainings:
            training.follow_up(number)

    def _logits(self, model: Model, weights: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Logits by target (V, N, C): of `model`'s heads with the weights of each of V trainings."""
        features = batch.inputs.features
        assert not isinstance(features, Tensor)
        own, logits = dict(zip(self._names, weights, strict=True)), {}
        with autocast(self._first.device, self._first.variant.fit.precision):
            for target, key in model.head_keys.items():
                prefix, head = f"heads.{key}.", model.heads[key]
                stacked = {name.removeprefix(prefix): weight for name, weight in own.items() if name.startswith(prefix)}
                assert isinstance(head, nn.Sequential)
                logits[target] = fused_forward(head, self._descriptors.of(features, model.taps[target], head[0]), stacked)
        return logits


class _Descriptors:
    """The outputs of heads' first layers, which have no weights, for a batch: computed once for all stacks that read it alike."""

    def __init__(self) -> None:
        self._inputs: Mapping[int, Tensor] = {}
        self._known: dict[Hashable, Tensor] = {}

    def of(self, inputs: Mapping[int, Tensor], taps: Sequence[int], layer: nn.Module) -> Tensor:
        """The layer's output (N, I) for the features at these taps."""
        if inputs is not self._inputs:
            self._inputs, self._known = inputs, {}
        key = (tuple(taps), type(layer))
        if key not in self._known:
            self._known[key] = layer(*(inputs[tap] for tap in taps))
        return self._known[key]


class FusedGroups:
    """The stacks of the running trainings; rebuilt only when a training ends or gets a new optimizer."""

    def __init__(self) -> None:
        self._optimizers: list[torch.optim.Optimizer] = []
        self._stacks: list[FusedHeads | Training] = []

    def of(self, trainings: Sequence[Training]) -> list[FusedHeads | Training]:
        """The trainings, all of fully frozen backbones: in stacks if they can share one, else by themselves."""
        optimizers = [training.optimizer for training in trainings]
        if optimizers != self._optimizers:
            self._optimizers, self._stacks = optimizers, _stack(trainings)
        return self._stacks


def _stack(trainings: Sequence[Training]) -> list[FusedHeads | Training]:
    alike: dict[Hashable, list[Training]] = defaultdict(list)
    for number, training in enumerate(trainings):
        alike[_shape(training) or number].append(training)
    descriptors = _Descriptors()
    # A stack of one as well, so that a variant's result depends on no neighbour.
    return [FusedHeads(group, descriptors) if isinstance(shape, Variant) else group[0] for shape, group in alike.items()]


def _shape(training: Training) -> Variant | None:
    """What trainings in one stack have in common; None if this one cannot be stacked."""
    variant, fit = training.variant, training.variant.fit
    # Decoders keep batch statistics, and other designs and activations compute an element by its place in the stack.
    strange = any(head.design not in STACKED_DESIGNS for head in variant.heads) or fit.mlp_activation not in STACKED_ACTIVATIONS
    # Learned weights of losses, and scalers of gradients, belong to one training.
    if strange or fit.head_weights != "equal" or fit.precision == "fp16" or fit.compile:
        return None
    return variant.model_copy(update={"freeze": "all", "fit": fit.model_copy(update=OWN_DEFAULTS)})


def _at(stacked: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    return {target: tensor[place] for target, tensor in stacked.items()}
