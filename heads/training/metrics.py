"""What one pass over a dataset adds up: sums, counts and scores, brought together over ranks only once, divided only then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from heads.catalogue import TASK_FACTS, Task
from heads.data.labels import MISSING_LABEL, has_label
from heads.distributed import all_gather_rows, sum_over_ranks
from heads.tasks.table import TASKS, Criterion
from heads.training.mixup import Mix
from heads.training.schedule import Score

# Batches are counted many at once, up to so many bytes: small heads spend more time in calls than in sums.
MAX_PENDING_BYTES = 16 * 2**20


@dataclass(frozen=True)
class MetricTotals:
    """What one target's labels and predictions came to: its task's counts, and its summed loss over `num_labels` samples.

    `scores`, where the task keeps them and they were asked for, hold a row for each sample that counts.
    """

    task: Task
    counts: Tensor
    loss_sum: float
    num_labels: int
    scores: Tensor | None = None

    @cached_property
    def measures(self) -> dict[str, float]:
        """Every measure of the target, by name."""
        # To single precision, that of the losses it sums: what lies below is noise, and would pass for progress.
        loss = (torch.tensor(self.loss_sum).double() / torch.tensor(self.num_labels).double()).item()
        return {**TASKS[self.task].measures(self.counts, self.scores), "loss": loss}

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts (true class, predicted class), where the task has such a table."""
        return TASKS[self.task].confusion(self.counts)

    @property
    def thresholds(self) -> list[float] | None:
        """From which probability on each class is meant, tuned on the scores, where the task has such thresholds."""
        return None if self.scores is None else TASKS[self.task].thresholds(self.scores)


class _Seen(NamedTuple):
    """A batch of one target that is not counted yet: its logits, labels and weights, and its summed loss."""

    logits: Tensor
    labels: Tensor
    weights: Tensor
    loss: Tensor


class MetricAccumulator:
    """Sums and counts by target, and on request each sample's scores; missing labels and images of weight 0 count for nothing.

    `tasks` are those of the targets. Losses are the tasks' plain ones, or what `criteria` say by target. At most
    `max_pending_bytes` of batches wait to be counted.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        criteria: Mapping[str, Criterion] | None = None,
        *,
        keeps_scores: bool = False,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        self._tasks, self._keeps_scores, self._max_pending_bytes = tasks, keeps_scores, max_pending_bytes
        self._criteria = {target: TASKS[task].PLAIN for target, task in tasks.items()} | dict(criteria or {})
        self._pending: dict[str, list[_Seen]] = {}
        self._pending_bytes = 0
        self._sums: dict[str, Tensor] = {}
        self._scores: dict[str, list[Tensor]] = {}

    def add(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor, mix: Mix | None = None
    ) -> dict[str, Tensor]:
        """Takes in a batch and gives its summed losses by target, with gradients.

        Of images that were mixed, every label still counts once: by its share for its own image, by the rest for the image
        that it went into; a mask is patched as its image was. Counts tell what was predicted of an image against its own
        label, mixed or not.
        """
        losses, seen = {}, {}
        for target, scores in logits.items():
            criterion = self._criteria[target]
            truths = seen[target] = mix.patched(labels[target]) if mix else labels[target]
            losses[target] = summed_loss(criterion, scores, truths, weights)
            if mix and not mix.patches(truths):
                rest = summed_loss(criterion, scores, truths[mix.partners], weights[mix.partners])
                losses[target] = mix.share * losses[target] + (1 - mix.share) * rest
        self.take(logits, seen, weights, losses)
        return losses

    def take(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor, losses: Mapping[str, Tensor]
    ) -> None:
        """Takes in a batch whose summed losses are known."""
        for target, scores in logits.items():
            seen = _Seen(scores.detach(), labels[target], weights, losses[target].detach())
            self._pending.setdefault(target, []).append(seen)
            self._pending_bytes += scores.nbytes + labels[target].nbytes
        if self._pending_bytes >= self._max_pending_bytes:
            self._count()

    def totals(self) -> dict[str, MetricTotals]:
        """The totals over all ranks, by target; every rank must ask."""
        self._count()
        return {target: self._total(target, sum_over_ranks(row).cpu()) for target, row in self._sums.items()}

    @torch.no_grad()
    def _count(self) -> None:
        for target, batches in self._pending.items():
            kind, losses = TASKS[self._tasks[target]], torch.stack([seen.loss for seen in batches])
            logits, labels, weights = (_joined(parts) for parts in zip(*(seen[:3] for seen in batches), strict=True))
            num_labels = (weights * has_label(labels)).double().sum()
            row = torch.cat([torch.stack([losses.double().sum(), num_labels]), kind.count(logits, labels, weights)])
            self._sums[target] = self._sums[target] + row if target in self._sums else row
            if self._keeps_scores and (kept := kind.score(logits, labels, weights)) is not None:
                self._scores.setdefault(target, []).append(kept)
        self._pending, self._pending_bytes = {}, 0

    def _total(self, target: str, row: Tensor) -> MetricTotals:
        return MetricTotals(self._tasks[target], row[2:], float(row[0]), round(float(row[1])), self._scores_of(target))

    def _scores_of(self, target: str) -> Tensor | None:
        if target not in self._scores:
            return None
        rows = all_gather_rows(torch.cat(self._scores[target])).cpu()
        return rows[rows[:, 0] != MISSING_LABEL]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def summed_loss(criterion: Criterion, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the samples' losses: a missing label and a weight of 0 count for nothing, not even in the gradient."""
    return (criterion.losses(logits.float(), labels) * weights).sum()


def summed_losses(criterion: Criterion, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """What `summed_loss` gives, to the bit, for each (V) of the logits (V, N, C) of the same samples."""
    if not criterion.by_row:
        # One by one: how an element is computed may depend on where in a tensor it lies.
        return torch.stack([summed_loss(criterion, rows, labels, weights) for rows in logits])
    losses = criterion.losses(logits.flatten(0, 1).float(), labels.repeat(len(logits)))
    return (losses.view(len(logits), -1) * weights).sum(dim=1)


def train_measures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """What is told of an epoch's training: `train/loss`, the sum of the targets' means, and each one's primary measure."""
    primary = {target: TASK_FACTS[total.task].primary for target, total in totals.items()}
    found = {target: total.measures for target, total in totals.items()}
    told = {f"train/{target}/{name}": found[target][name] for target, name in primary.items() if name in found[target]}
    return {"train/loss": sum(total.loss_sum / max(1, total.num_labels) for total in totals.values()), **told}


def epoch_score(totals: Mapping[str, MetricTotals]) -> Score:
    """What an epoch is judged by: the mean of the targets' primary measures, then the lower mean loss, finite ones."""
    found = {target: total.measures for target, total in totals.items()}
    primary = [found[target].get(TASK_FACTS[total.task].primary, math.nan) for target, total in totals.items()]
    gains, losses = ([x for x in xs if math.isfinite(x)] for xs in (primary, [each["loss"] for each in found.values()]))
    return sum(gains) / max(1, len(gains)), -sum(losses) / max(1, len(losses))


def named_measures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """Measures named `<target>/<measure>`."""
    return {f"{target}/{name}": x for target, total in totals.items() for name, x in total.measures.items()}


def confusions(totals: Mapping[str, MetricTotals]) -> dict[str, list[list[int]]]:
    """Counts (true class, predicted class) by target, of the tasks that have such a table."""
    return {target: table for target, total in totals.items() if (table := total.confusion) is not None}


def thresholds(totals: Mapping[str, MetricTotals]) -> dict[str, list[float]]:
    """From which probability on each class is meant, by target, of the tasks that have such thresholds."""
    return {target: found for target, total in totals.items() if (found := total.thresholds) is not None}
