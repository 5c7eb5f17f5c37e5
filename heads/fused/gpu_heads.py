"""Heads of one shape that learn side by side on a GPU: a step makes as many calls for all of them as for one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heads.data.loading import Batch
from heads.fused.fused_heads import Descriptors, FusedHeads
from heads.fused.row_layout import RowLayout
from heads.fused.rows_optimizer import rows_optimizer
from heads.fused.stacked_metrics import StackedMetrics
from heads.model.model import Model
from heads.model.precision import computing_dtype
from heads.tasks.table import TASKS
from heads.training.ema import new_share
from heads.training.metrics import EpochTotals, summed_losses
from heads.training.optimizer import NORM_MARGIN
from heads.training.session import Training


class GpuHeads(FusedHeads):
    """Fused heads whose weights, optimizer state and averages are rows of one matrix each, and whose measures are one tally.

    The trainings have optimizers of one kind, and all have an average of their weights or none has. What each ends with is what
    it ends with alone, but for rounding. Nothing waits for the device within an epoch.
    """

    def __init__(self, trainings: Sequence[Training], descriptors: Descriptors) -> None:
        super().__init__(trainings, descriptors)
        own = self._owned([training.model for training in trainings])
        self._columns = RowLayout([weight.shape for weight in own[0]])
        self._weights = self._bind([training.model for training in trainings])
        averages = [training.average for training in trainings if training.average]
        self._average = self._bind([average.model for average in averages]) if averages else None
        for training in trainings:
            if training.average:
                training.average.find(training.model)
        self._optimizer = rows_optimizer([training.optimizer for training in trainings], self._columns, self._weights)
        self._clips = any(training.variant.fit.gradient_clip for training in trainings)
        self._dtype = computing_dtype(self._first.device, self._first.variant.fit.precision)
        self._gradients: Tensor | None = None
        self._plain = {target: TASKS[task].PLAIN for target, task in self._first.model.tasks.items()}

    def begin_epoch(self) -> None:
        fits = [training.variant.fit for training in self.trainings]
        factors = torch.tensor([training.rate_factors for training in self.trainings], dtype=torch.float64)
        rates = factors.T * torch.tensor([fit.learning_rate for fit in fits], dtype=torch.float64)
        # By update (U, V, 1), as the optimizer and the average multiply rows by them.
        self._rates = rates[..., None].float().to(self._first.device)
        first = self._first.index * len(rates)
        if self._average is not None:
            shares = [[new_share(fit.ema, first + number) for fit in fits] for number in range(len(rates))]
            self._shares = torch.tensor(shares)[..., None].to(self._first.device)
        tasks = self._first.model.tasks
        self._trained, self._measured = StackedMetrics(tasks), StackedMetrics(tasks, keeps_scores=True)

    def train_on(self, number: int, batch: Batch) -> None:
        rows = self._weights.detach().requires_grad_()
        logits, losses, loss = self._learn(self._columns.split(rows.to(self._dtype)), batch)
        (gradients,) = torch.autograd.grad(loss, rows)
        self._trained.take(logits, batch.labels, batch.weights, losses)
        self._gradients = gradients if self._gradients is None else self._gradients.add_(gradients)
        if batch.updates:
            self._update(number // self._first.variant.fit.accumulate)

    @torch.no_grad()
    def _update(self, number: int) -> None:
        assert self._gradients is not None
        if self._clips:
            norms = torch.linalg.vector_norm(self._gradients, dim=1) + NORM_MARGIN
            # A NaN makes all gradients of its training NaN, as in torch's own clipping.
            self._gradients.mul_((self._limits / norms).clamp(max=1)[:, None])
        self._optimizer.step(self._gradients, self._rates[number])
        self._gradients = None
        if self._average is not None:
            self._average.lerp_(self._weights, self._shares[number])

    def end_training(self) -> None:
        for training in self.trainings:
            training.set_rates(len(self._rates) - 1)
        # Of the models only the first one's layers are called.
        self._first.end_training()

    @torch.no_grad()
    def validate_on(self, batch: Batch) -> None:
        kept = self._weights if self._average is None else self._average
        logits = self._forward(self._first.kept, self._columns.split(kept.to(self._dtype)), batch)
        losses = {
            target: summed_losses(criterion, logits[target], batch.labels[target], batch.weights)
            for target, criterion in self._plain.items()
        }
        self._measured.take(logits, batch.labels, batch.weights, losses)

    def totals(self) -> list[EpochTotals]:
        return list(zip(self._trained.totals(), self._measured.totals(), strict=True))

    def _bind(self, models: Sequence[Model]) -> Tensor:
        """The heads' weights of these models as rows (V, P); the models' own become views of them."""
        owned = self._owned(models)
        rows = self._columns.gather(owned)
        stacks = [stack.unbind() for stack in self._columns.split(rows)]
        for place, own in enumerate(owned):
            for weight, stack in zip(own, stacks, strict=True):
                weight.data = stack[place]
        return rows
