"""What one pass over a dataset adds up: sums and counts, reduced over ranks only once, divided only then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.classification import MISSING_LABEL, loss, measures
from heads.ranks import sum_over_ranks


@dataclass(frozen=True)
class Total:
    """One target's confusion (true class, predicted class) of counts, and its summed loss in nats over `count` labels."""

    confusion: Tensor
    loss_sum: float
    count: int

    def measures(self) -> dict[str, float]:
        """Every measure of the target, by name."""
        return measures(self.confusion, self.loss_sum, self.count)


class Tally:
    """Sums and counts by target; missing labels and images of weight 0 count for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """Takes in a batch and gives its summed losses by target, with gradients."""
        losses = {}
        for target, scores in logits.items():
            losses[target], count = loss(scores, labels[target], weights)
            row = torch.cat(
                [torch.stack([losses[target].detach().double(), count.double()]), _confuse(scores, labels[target], weights)]
            )
            self._sums[target] = self._sums[target] + row if target in self._sums else row
        return losses

    def totals(self) -> dict[str, Total]:
        """The totals over all ranks, by target; every rank must ask."""
        return {target: _total(sum_over_ranks(row).cpu()) for target, row in self._sums.items()}


def _confuse(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    num_classes = scores.shape[1]
    cells = labels.clamp(min=0) * num_classes + scores.argmax(dim=1)
    counted = (weights * (labels != MISSING_LABEL)).double()
    return torch.zeros(num_classes**2, dtype=torch.float64, device=scores.device).index_add_(0, cells, counted)


def _total(row: Tensor) -> Total:
    table = row[2:].round().long()
    num_classes = round(len(table) ** 0.5)
    return Total(table.reshape(num_classes, num_classes), float(row[0]), int(row[1]))
