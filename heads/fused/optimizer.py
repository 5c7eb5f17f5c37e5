"""One update of trainings whose weights lie in stacks: each by its own gradients, its own norm and its own optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from heads.training.optimizer import NORM_MARGIN

# What the optimizers keep of a weight.
ADAM = ("step", "exp_avg", "exp_avg_sq")
SGD = ("momentum_buffer",)


class FusedOptimizer:
    """Many trainings' optimizers stepped by one call each, without torch's overhead a step; their state stays in each of them."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._groups = [group for place, optimizer in enumerate(optimizers) for group in _groups(optimizer, place)]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update of all weights by their stacked gradients (V, ...), in the order in which each optimizer has them."""
        each = [stacked.unbind() for stacked in gradients]
        for group in self._groups:
            group.step(each)


def _groups(optimizer: torch.optim.Optimizer, place: int) -> Iterator[_Group]:
    first = 0
    for group in optimizer.param_groups:
        yield _Group(optimizer, group, place, first)
        first += len(group["params"])


class _Group:
    """Weights that share a rate and a weight decay: those of the training at `place`, from its `first` one on."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], place: int, first: int) -> None:
        # The optimizer's very own group: a rate that is set there holds here.
        self._group, self._place, self._fused = group, place, bool(optimizer.defaults["fused"])
        weights: list[nn.Parameter] = group["params"]
        self._numbers = range(first, first + len(weights))
        self._weights = [weight.data for weight in weights]
        self._is_adam = isinstance(optimizer, torch.optim.AdamW)
        for weight in weights:
            _know(optimizer.state[weight], weight, ADAM if self._is_adam else SGD)
        known = [optimizer.state[weight] for weight in weights]
        self._kept = {name: [of[name] for of in known] for name in known[0] if name != "step"}
        self._steps = [of["step"] for of in known if "step" in of]

    def step(self, all_gradients: Sequence[Sequence[Tensor]]) -> None:
        """One update by its own of all gradients, by weight and training."""
        gradients, group = [all_gradients[number][self._place] for number in self._numbers], self._group
        told: dict[str, Any] = {"fused": self._fused, "maximize": False, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        if self._is_adam:
            (beta1, beta2), moments = group["betas"], (self._kept["exp_avg"], self._kept["exp_avg_sq"])
            told |= {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "amsgrad": False}
            adamw(self._weights, gradients, *moments, [], self._steps, **told)
        else:
            told |= {name: group[name] for name in ("momentum", "dampening", "nesterov")}
            sgd(self._weights, gradients, list(self._kept["momentum_buffer"]), **told)


def _know(known: dict[str, Any], weight: nn.Parameter, names: Sequence[str]) -> None:
    """Creates an optimizer's state of a weight before its first step.

    Zeros give what torch's lazy initialisation gives, with SGD only where dampening is 0.
    """
    for name in names:
        if name not in known:
            known[name] = torch.zeros((), device=weight.device) if name == "step" else torch.zeros_like(weight)


def clip_each(gradients: Sequence[Tensor], limits: Tensor) -> None:
    """Brings the gradients of each training, those at its place in stacks (V, ...), together to its norm in `limits` (V) where
    theirs is greater; a limit of infinity clips nothing."""
    rows = [each.view(len(each), -1) for each in gradients]
    norms = torch.stack([torch.linalg.vector_norm(each, dim=1) for each in rows], dim=1)
    whole = torch.linalg.vector_norm(norms, dim=1) + NORM_MARGIN
    # One that is no number takes all of its training's with it, as torch's own clipping does.
    over = ~(whole <= limits) & limits.isfinite()
    # On a CPU a look at the norms costs less than to multiply all gradients by one.
    if norms.device.type != "cpu" or over.any():
        # As torch divides a number by a tensor.
        factors = torch.where(over, whole.reciprocal() * limits, 1.0)[:, None]
        for each in rows:
            each.mul_(factors)
