"""What one pass over a dataset adds up: sums, counts and scores, brought together over ranks only once, divided only then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from heads import measures
from heads.classification import MISSING_LABEL, PLAIN, Criterion, loss
from heads.mixing import Mix
from heads.ranks import rows_of_ranks, sum_over_ranks


@dataclass(frozen=True)
class Total:
    """One target's confusion (true class, predicted class) of counts, and its summed loss in nats over `count` labels.

    `scores`, where they were kept, hold a row for each label: the true class, then every class's probability.
    """

    confusion: Tensor
    loss_sum: float
    count: int
    scores: Tensor | None = None

    def measures(self) -> dict[str, float]:
        """Every measure of the target, by name."""
        counted = measures.from_counts(self.confusion, self.loss_sum, self.count)
        return counted if self.scores is None else counted | measures.from_scores(self.scores[:, 1:], self.scores[:, 0].long())


class Tally:
    """Sums and counts by target, and on request each sample's scores; missing labels and images of weight 0 count for nothing.

    Losses are plain cross entropy in nats, or what `criteria` say by target.
    """

    def __init__(self, criteria: Mapping[str, Criterion] | None = None, *, keeps_scores: bool = False) -> None:
        self._criteria = criteria or {}
        self._sums: dict[str, Tensor] = {}
        self._scores: dict[str, list[Tensor]] | None = {} if keeps_scores else None

    def add(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor, mix: Mix | None = None
    ) -> dict[str, Tensor]:
        """Takes in a batch and gives its summed losses by target, with gradients.

        Of images that were mixed, every label still counts once: by its share for its own image, by the rest for the image
        that it went into. Confusions tell what was predicted of an image against its own label, mixed or not.
        """
        losses = {}
        for target, scores in logits.items():
            criterion = self._criteria.get(target, PLAIN)
            losses[target], count = loss(scores, labels[target], weights, criterion)
            if mix:
                rest, _ = loss(scores, labels[target][mix.partners], weights[mix.partners], criterion)
                losses[target] = mix.share * losses[target] + (1 - mix.share) * rest
            row = torch.cat(
                [torch.stack([losses[target].detach().double(), count.double()]), _confuse(scores, labels[target], weights)]
            )
            self._sums[target] = self._sums[target] + row if target in self._sums else row
            if self._scores is not None:
                self._scores.setdefault(target, []).append(_score(scores, labels[target], weights))
        return losses

    def totals(self) -> dict[str, Total]:
        """The totals over all ranks, by target; every rank must ask."""
        return {target: _total(sum_over_ranks(row).cpu(), self._scores_of(target)) for target, row in self._sums.items()}

    def _scores_of(self, target: str) -> Tensor | None:
        if self._scores is None:
            return None
        rows = rows_of_ranks(torch.cat(self._scores[target])).cpu()
        return rows[rows[:, 0] != MISSING_LABEL]


def train_measures(totals: Mapping[str, Total]) -> dict[str, float]:
    """What is told of an epoch's training: `train/loss`, the sum of the targets' means, and `train/<target>/accuracy`."""
    accuracies = {f"train/{target}/accuracy": total.measures()["accuracy"] for target, total in totals.items()}
    return {"train/loss": sum(total.loss_sum / max(1, total.count) for total in totals.values()), **accuracies}


def _score(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    # What does not count stays in as if it had no label, so that every rank has as many rows.
    truths = torch.where(weights > 0, labels, MISSING_LABEL).float()
    return torch.cat([truths[:, None], scores.detach().float().softmax(dim=1)], dim=1)


def _confuse(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    num_classes = scores.shape[1]
    cells = labels.clamp(min=0) * num_classes + scores.argmax(dim=1)
    counted = (weights * (labels != MISSING_LABEL)).double()
    return torch.zeros(num_classes**2, dtype=torch.float64, device=scores.device).index_add_(0, cells, counted)


def _total(row: Tensor, scores: Tensor | None) -> Total:
    table = row[2:].round().long()
    num_classes = round(len(table) ** 0.5)
    return Total(table.reshape(num_classes, num_classes), float(row[0]), int(row[1]), scores)
