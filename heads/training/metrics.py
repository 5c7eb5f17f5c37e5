"""Sums, counts and scores of one pass over a dataset, reduced over ranks once and divided only then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from heads.catalogue import TASK_FACTS, Task
from heads.data.labels import MISSING_LABEL, has_label
from heads.distributed import all_gather_rows, sum_over_ranks
from heads.errors import TrainingDiverged
from heads.model.precision import is_exact
from heads.spec import Fit
from heads.tasks.table import TASKS, Criterion
from heads.training.mixup import Mix
from heads.training.schedule import Score

# Batches are counted many at once, up to so many bytes: small heads spend more time in calls than in sums. As many beside other
# trainings as alone, since the last bit of a label's probability depends on its place among those that are counted at once.
MAX_PENDING_BYTES = 2**18


@dataclass(frozen=True)
class MetricTotals:
    """One target's sums, its task's counts and its loss summed over `num_labels` samples, and every measure by name.

    `scores` hold a row for each sample that counts, if the task keeps them and they were asked for.
    """

    task: Task
    counts: Tensor
    loss_sum: float
    num_labels: int
    scores: Tensor | None
    measures: dict[str, float]
    fit_temperature: Callable[[], float | None]

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts (true class, predicted class); None if the task has no such table."""
        return TASKS[self.task].confusion(self.counts)

    @cached_property
    def temperature(self) -> float | None:
        """What the logits are to be divided by, fitted on the scores; None if there are none."""
        return self.fit_temperature()

    @property
    def thresholds(self) -> list[float] | None:
        """The probability at that temperature from which on each class is predicted; None if the task has no thresholds."""
        return None if self.scores is None else TASKS[self.task].thresholds(self.scores, self.temperature or 1.0)


# An epoch's totals of training and of validation, by target.
EpochTotals = tuple[dict[str, MetricTotals], dict[str, MetricTotals]]


class _Seen(NamedTuple):
    """A batch of one target that is not counted yet: its logits, labels and weights, and its summed loss."""

    logits: Tensor
    labels: Tensor
    weights: Tensor
    loss: Tensor


class MetricAccumulator:
    """Sums and counts by target, and on request each sample's scores; missing labels and samples of weight 0 do not count.

    `tasks` and `criteria` are by target; a target without a criterion has its task's plain loss.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        criteria: Mapping[str, Criterion] | None = None,
        *,
        keeps_scores: bool = False,
    ) -> None:
        self._tasks, self._keeps_scores = tasks, keeps_scores
        self._criteria = {target: TASKS[task].PLAIN for target, task in tasks.items()} | dict(criteria or {})
        self._pending: dict[str, list[_Seen]] = {}
        self._pending_bytes = 0
        self._sums: dict[str, Tensor] = {}
        self._scores: dict[str, list[Tensor]] = {}

    def add(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor, mix: Mix | None = None
    ) -> dict[str, Tensor]:
        """Takes in a batch and gives its summed losses by target, with gradients.

        If images were mixed, every label still counts once: by `share` for its own image, by the rest for the image that its
        own went into; a mask is patched as its image was. Counts compare the prediction for an image with its own label, mixed
        or not.
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
        if self._pending_bytes >= MAX_PENDING_BYTES:
            self._count()

    def totals(self) -> dict[str, MetricTotals]:
        """The totals over all ranks, by target; every rank must call it."""
        self._count()
        return {target: self._total(target, sum_over_ranks(row).cpu()) for target, row in self._sums.items()}

    @torch.no_grad()
    def _count(self) -> None:
        for target, batches in self._pending.items():
            task, loss_sum = TASKS[self._tasks[target]], torch.stack([seen.loss for seen in batches]).double().sum()
            for logits, labels, weights in _together(batches):
                num_labels = (weights * has_label(labels)).double().sum()
                row = torch.cat([torch.stack([loss_sum, num_labels]), task.count(logits, labels, weights)])
                loss_sum = torch.zeros_like(loss_sum)
                self._sums[target] = self._sums[target] + row if target in self._sums else row
                if self._keeps_scores and (kept := task.score(logits, labels, weights)) is not None:
                    self._scores.setdefault(target, []).append(kept)
        self._pending, self._pending_bytes = {}, 0

    def _total(self, target: str, row: Tensor) -> MetricTotals:
        scores = self._scores_of(target)
        return totals_of(self._tasks[target], row[None], None if scores is None else scores[None])[0]

    def _scores_of(self, target: str) -> Tensor | None:
        if target not in self._scores:
            return None
        rows = all_gather_rows(torch.cat(self._scores[target])).cpu()
        return rows[rows[:, 0] != MISSING_LABEL]


def totals_of(task: Task, sums: Tensor, scores: Tensor | None) -> list[MetricTotals]:
    """The totals of several models on the same samples, from a row of sums each (V, 2 + K): of losses, of labels, the task's
    counts; and the scores (V, N, ...) of samples that count."""
    measured, totals = TASKS[task].measures_of_each(sums[:, 2:], scores), []

    # Of all at the first model's asking, if any does.
    @cache
    def fitted() -> Sequence[float | None]:
        return [None] * len(sums) if scores is None else TASKS[task].temperatures(scores)

    for place, (row, measures) in enumerate(zip(sums.cpu(), measured, strict=True)):
        loss_sum, num_labels = float(row[0]), round(float(row[1]))
        # In single precision, that of the summed losses: smaller differences are noise, and would pass for progress.
        loss = (torch.tensor(loss_sum).double() / torch.tensor(num_labels).double()).item()
        own = None if scores is None else scores[place]
        named, fit = {**measures, "loss": loss}, partial(lambda place: fitted()[place], place)
        totals.append(MetricTotals(task, row[2:], loss_sum, num_labels, own, named, fit))
    return totals


def _together(batches: Sequence[_Seen]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Their logits, labels and weights: as one if all have one shape, else of each by itself, as sentences differ in length."""
    if len({(seen.logits.shape[1:], seen.labels.shape[1:]) for seen in batches}) > 1:
        yield from ((seen.logits, seen.labels, seen.weights) for seen in batches)
        return
    logits, labels, weights = zip(*(seen[:3] for seen in batches), strict=True)
    yield _joined(logits), _joined(labels), _joined(weights)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def summed_loss(criterion: Criterion, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the samples' losses: a missing label and a weight of 0 count for nothing, not even in the gradient."""
    return (criterion.losses(logits.float(), labels) * weights).sum()


def summed_losses(criterion: Criterion, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The `summed_loss` of each (V) of the logits (V, N, C) for the same samples, on a CPU equal to the bit."""
    if not criterion.by_row and is_exact(logits.device):
        # One by one: how an element is computed may depend on where in a tensor it lies.
        return torch.stack([summed_loss(criterion, rows, labels, weights) for rows in logits])
    losses = criterion.losses(logits.flatten(0, 1).float(), labels.repeat(len(logits), *[1] * (labels.ndim - 1)))
    return (losses.view(len(logits), -1) * weights).sum(dim=1)


def train_measures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """An epoch's training measures: `train/loss`, the sum of the targets' mean losses, and each target's primary measure."""
    primary = {target: TASK_FACTS[total.task].primary for target, total in totals.items()}
    measures = {target: total.measures for target, total in totals.items()}
    primaries = {f"train/{target}/{name}": measures[target][name] for target, name in primary.items() if name in measures[target]}
    return {"train/loss": sum(total.loss_sum / max(1, total.num_labels) for total in totals.values()), **primaries}


def epoch_score(totals: Mapping[str, MetricTotals]) -> Score:
    """An epoch's score: the mean of the targets' primary measures, then of their negative losses, over those that are finite."""
    measures = {target: total.measures for target, total in totals.items()}
    primary = [measures[target].get(TASK_FACTS[total.task].primary, math.nan) for target, total in totals.items()]
    gains, losses = ([x for x in xs if math.isfinite(x)] for xs in (primary, [by_name["loss"] for by_name in measures.values()]))
    return sum(gains) / max(1, len(gains)), -sum(losses) / max(1, len(losses))


def named_measures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """Measures named `<target>/<measure>`."""
    return {f"{target}/{name}": x for target, total in totals.items() for name, x in total.measures.items()}


def confusions(totals: Mapping[str, MetricTotals]) -> dict[str, list[list[int]]]:
    """Counts (true class, predicted class) by target, for tasks that have such a table."""
    return {target: table for target, total in totals.items() if (table := total.confusion) is not None}


def thresholds(totals: Mapping[str, MetricTotals]) -> dict[str, list[float]]:
    """The probabilities from which on each class is predicted, by target, for tasks that have thresholds."""
    return {target: found for target, total in totals.items() if (found := total.thresholds) is not None}


def temperatures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """What logits are to be divided by, by target, for tasks that have probabilities."""
    return {target: found for target, total in totals.items() if (found := total.temperature) is not None}


def check_finite(fit: Fit, epoch: int, totals: Mapping[str, MetricTotals]) -> None:
    """Raises TrainingDiverged if the loss of a target is not finite."""
    for target, total in totals.items():
        if not math.isfinite(total.loss_sum):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: the loss of {target!r} is {total.loss_sum}; "
                f"lower learning_rate, now {fit.learning_rate:g}"
            )
