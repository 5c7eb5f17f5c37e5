"""How the losses of several heads are summed to one: by fixed weights, or also by weights that training learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from heads.distributed import num_ranks, sum_over_ranks


class LossWeighting(nn.Module):
    """Sums a step's losses by target to the one that is minimised: by `fixed` weights and, if `learned`, by uncertainty.

    By uncertainty, a target's loss L counts exp(-s) L + s / 2, with a log variance s that is learned from 0 on (Kendall, Gal
    & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018). It belongs to the training, not to the
    model; its gradients are averaged over ranks by `average_gradients`.
    """

    def __init__(self, targets: Sequence[str], *, learned: bool, fixed: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.fixed = fixed or {}
        self.log_variances = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in targets) if learned else None

    def forward(self, sums: Mapping[str, Tensor], num_labels: Mapping[str, int], *, updates: bool = True) -> Tensor:
        """This rank's share of the loss, from its `sums` over a batch and the number of labels of the update on all ranks.

        Gradients are averaged over ranks afterwards, hence the factor. A target without a label in the update counts for
        nothing. `updates` is whether the batch is its update's last: s / 2 counts with that one, once an update.
        """
        shares = {target: self.fixed.get(target, 1.0) * num_ranks() / max(1, num_labels[target]) for target in sums}
        means = {target: loss * shares[target] for target, loss in sums.items()}
        if self.log_variances is not None:
            noises = dict(zip(self.targets, self.log_variances, strict=True))
            means = {t: (-noises[t]).exp() * mean + noises[t] / 2 * (updates and num_labels[t] > 0) for t, mean in means.items()}
        return torch.stack(list(means.values())).sum()

    def average_gradients(self) -> None:
        """Replaces the log variances' gradients by their mean over ranks: no other hook sees them."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad) / num_ranks()

    def weights(self) -> dict[str, float]:
        """The learned weight of each target's loss; empty if weights are not learned."""
        if self.log_variances is None:
            return {}
        return {target: (-s.detach()).exp().item() for target, s in zip(self.targets, self.log_variances, strict=True)}
