"""Heads of one shape that learn side by side on a CPU, each to the bit as alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from heads.data.loading import Batch
from heads.fused import alignment
from heads.fused.fused_heads import Descriptors, FusedHeads
from heads.fused.optimizer import FusedOptimizer, clip_each
from heads.training.metrics import EpochTotals
from heads.training.session import Training


class CpuHeads(FusedHeads):
    """Fused heads on a CPU: in float32 each ends with the bits that it ends with alone, by the very calls that it would make."""

    def __init__(self, trainings: Sequence[Training], descriptors: Descriptors) -> None:
        super().__init__(trainings, descriptors)
        owned = self._owned([training.model for training in trainings])
        self._weights = [alignment.stack([weight.detach() for weight in same]) for same in zip(*owned, strict=True)]
        for place, (training, own) in enumerate(zip(trainings, owned, strict=True)):
            for weight, stacked in zip(own, self._weights, strict=True):
                weight.data = stacked[place]
            if training.average:
                training.average.find(training.model)
        self._joint = FusedOptimizer([training.optimizer for training in trainings])
        self._gradients: list[Tensor] = []
        self._kept: list[Tensor] = []

    def begin_epoch(self) -> None:
        self._gradients, self._kept = [], []

    def train_on(self, number: int, batch: Batch) -> None:
        weights = [stacked.detach().requires_grad_() for stacked in self._weights]
        logits, losses, loss = self._learn(weights, batch)
        gradients = torch.autograd.grad(loss, weights)
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
        for training in self.trainings:
            training.end_training()
        kept = self._owned([training.kept for training in self.trainings])
        self._kept = [alignment.stack([weight.detach() for weight in same]) for same in zip(*kept, strict=True)]

    @torch.no_grad()
    def validate_on(self, batch: Batch) -> None:
        logits = self._forward(self._first.kept, self._kept, batch)
        for place, training in enumerate(self.trainings):
            training.measured.add(_at(logits, place), batch.labels, batch.weights)

    def totals(self) -> Iterable[EpochTotals]:
        return (training.totals() for training in self.trainings)

    def _update(self, number: int) -> None:
        for training in self.trainings:
            training.set_rates(number)
        clip_each(self._gradients, self._limits)
        self._joint.step(self._gradients)
        self._gradients = []
        for training in self.trainings:
            training.follow_up(number)


def _at(stacked: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    return {target: tensor[place] for target, tensor in stacked.items()}
