"""Heads of one shape that learn side by side: one forward and backward pass for all, then each training's own affairs.

After "HFTA", Wang et al., "Horizontally Fused Training Array", MLSys 2021. Features are read, pooled and normalised once for
all; rates, optimizers, clipping and early stopping stay each training's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from heads.data.loading import Batch
from heads.fused.linear import fused_forward
from heads.model.model import Model
from heads.model.precision import autocast
from heads.training.metrics import EpochTotals, summed_losses
from heads.training.session import Training


class Descriptors:
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


class FusedHeads(ABC):
    """Trainings that go through epochs together, with the same result as each alone.

    Their models differ in the values of their heads' weights alone, which become views of stacks, so that an update of one
    updates the stack. All draw the same dropout, as each would alone from the seed that they share.
    """

    def __init__(self, trainings: Sequence[Training], descriptors: Descriptors) -> None:
        self.trainings, self._first, self._descriptors = tuple(trainings), trainings[0], descriptors
        names = {weight: name for name, weight in self._first.model.named_parameters()}
        # In the optimizer's order, in which a training alone adds up its gradients' norm.
        self._names = [names[weight] for group in self._first.optimizer.param_groups for weight in group["params"]]
        limits = [training.variant.fit.gradient_clip or torch.inf for training in trainings]
        self._limits = torch.tensor(limits, device=self._first.device)

    @abstractmethod
    def begin_epoch(self) -> None:
        """Makes ready for an epoch that each of the trainings has begun."""

    @abstractmethod
    def train_on(self, number: int, batch: Batch) -> None:
        """Trains all on the epoch's batch of this number."""

    @abstractmethod
    def end_training(self) -> None:
        """Makes ready for validation, after the epoch's last training batch."""

    @abstractmethod
    def validate_on(self, batch: Batch) -> None:
        """Takes a validation batch into each training's measures of the epoch."""

    @abstractmethod
    def totals(self) -> Iterable[EpochTotals]:
        """The epoch's totals of each training, in their order."""

    def _owned(self, models: Sequence[Model]) -> list[list[nn.Parameter]]:
        """The heads' weights by model, and then in the order of their names."""
        return [[model.get_parameter(name) for name in self._names] for model in models]

    def _forward(self, model: Model, weights: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
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

    def _learn(self, weights: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """A training batch's logits (V, N, C) and summed losses (V) by target, and the sum of all that is minimised."""
        logits = self._forward(self._first.model, weights, batch)
        losses = {
            target: summed_losses(self._first.criteria[target], rows, batch.labels[target], batch.weights)
            for target, rows in logits.items()
        }
        return logits, losses, self._first.balance(losses, batch.num_labels, updates=batch.updates)
