"""Sums, counts and scores of many trainings on the same samples, kept together and divided once an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from heads.catalogue import Task
from heads.data.labels import MISSING_LABEL, has_label
from heads.tasks.table import TASKS, TaskHead
from heads.training.metrics import MetricTotals, totals_of

# Batches are counted many at once, up to so many bytes of their logits.
MAX_PENDING_BYTES = 256 * 2**20
# Scores of so many numbers are measured at once; a training of more by itself.
MAX_SCORES = 2**24


class _Seen(NamedTuple):
    """A batch of one target: logits (V, N, C), labels and weights (N) that all share, summed losses (V)."""

    logits: Tensor
    labels: Tensor
    weights: Tensor
    losses: Tensor


class StackedMetrics:
    """What `MetricAccumulator` is to one training, to V of them: nothing is read from the device before the `totals`."""

    def __init__(self, tasks: Mapping[str, Task], *, keeps_scores: bool = False) -> None:
        self._tasks, self._keeps_scores = tasks, keeps_scores
        self._pending: dict[str, list[_Seen]] = {}
        self._pending_bytes = 0
        self._sums: dict[str, Tensor] = {}
        self._scores: dict[str, list[Tensor]] = {}

    def take(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor, losses: Mapping[str, Tensor]
    ) -> None:
        """Takes in a batch's logits (V, N, C) and summed losses (V) by target."""
        for target, stacked in logits.items():
            seen = _Seen(stacked.detach(), labels[target], weights, losses[target].detach())
            self._pending.setdefault(target, []).append(seen)
            self._pending_bytes += stacked.nbytes
        if self._pending_bytes >= MAX_PENDING_BYTES:
            self._count()

    def totals(self) -> list[dict[str, MetricTotals]]:
        """Each training's totals, by target."""
        self._count()
        by_target = {target: self._totals(target, rows) for target, rows in self._sums.items()}
        return [dict(zip(by_target, own, strict=True)) for own in zip(*by_target.values(), strict=True)]

    @torch.no_grad()
    def _count(self) -> None:
        for target, batches in self._pending.items():
            task = TASKS[self._tasks[target]]
            logits = torch.cat([seen.logits for seen in batches], dim=1)
            labels, weights = torch.cat([seen.labels for seen in batches]), torch.cat([seen.weights for seen in batches])
            losses = torch.stack([seen.losses for seen in batches]).double().sum(dim=0)
            num_labels = (weights * has_label(labels)).double().sum().expand_as(losses)
            rows = torch.cat([torch.stack([losses, num_labels], dim=1), task.count(logits, labels, weights)], dim=1)
            self._sums[target] = self._sums[target] + rows if target in self._sums else rows
            if self._keeps_scores:
                self._scores.setdefault(target, []).append(_score(task, logits, labels, weights))
        self._pending, self._pending_bytes = {}, 0

    def _totals(self, target: str, rows: Tensor) -> list[MetricTotals]:
        task = self._tasks[target]
        if target not in self._scores:
            return totals_of(task, rows, None)
        scores = torch.cat(self._scores[target], dim=1)
        scores = scores[:, scores[0, :, 0] != MISSING_LABEL]
        step = max(1, MAX_SCORES // max(1, scores[0].numel()))
        parts = zip(torch.split(rows, step), torch.split(scores, step), strict=True)
        return [total for own_rows, own_scores in parts for total in totals_of(task, own_rows, own_scores)]


def _score(task: TaskHead, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The task's score rows of each training (V, N, K)."""
    repeated = (each.repeat(len(logits), *[1] * (each.ndim - 1)) for each in (labels, weights))
    rows = task.score(logits.flatten(0, 1), *repeated)
    assert rows is not None, "masks are not in stacks"
    return rows.view(*logits.shape[:2], -1)
