"""The running average of a model's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from heads.distributed import average_statistics
from heads.model.model import Model


class EMA:
    """An exponential moving average of a model's parameters and buffers (Polyak and Juditsky, 1992), as a model in eval mode.

    After n updates its decay is min(decay, (1 + n) / (10 + n)), so that a short training is not an average of its start.
    BatchNorm's statistics are averaged like the weights they belong to; whole numbers and frozen stages are copied.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(model).requires_grad_(False).eval()
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self.follow(model)

    def follow(self, model: Model) -> None:
        """From now on averages what the model now trains; the model's frozen stages are copied, once."""
        num_frozen = model.num_frozen_stages
        self.model.backbone[:num_frozen].load_state_dict(model.backbone[:num_frozen].state_dict())
        self.find(model)

    def find(self, model: Model) -> None:
        """Looks the model's weights up again, after they moved in memory."""
        num_frozen = model.num_frozen_stages
        self._pairs = []
        for mean, part in ((self.model.backbone[num_frozen:], model.backbone[num_frozen:]), (self.model.heads, model.heads)):
            self._pairs += zip(mean.state_dict().values(), part.state_dict().values(), strict=True)

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Takes the followed model's weights into the average, after `num_updates` updates."""
        weight = new_share(self.decay, num_updates)
        for mean, value in self._pairs:
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    def synchronise(self, model: nn.Module) -> None:
        """Replaces the averages of BatchNorm statistics by their mean over ranks; every rank must call it."""
        average_statistics(self.model, like=model)


def new_share(decay: float, num_updates: int) -> float:
    """How much the weights after `num_updates` updates count in the average with what came before."""
    return 1 - min(decay, (1 + num_updates) / (10 + num_updates))
