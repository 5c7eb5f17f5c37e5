"""One update of many trainings with stacked weights, each by its own gradients, gradient norm and optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from heads.training.optimizer import NORM_MARGIN

# The names of an optimizer's state of a weight.
ADAM = ("step", "exp_avg", "exp_avg_sq")
SGD = ("momentum_buffer",)


class FusedOptimizer:
    """Steps many trainings' optimizers by one call each, without torch's overhead; each keeps its own state."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._groups = [group for place, optimizer in enumerate(optimizers) for group in _groups(optimizer, place)]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update of all weights by their stacked gradients (V, ...), in the order in which each optimizer has them."""
        unstacked = [stacked.unbind() for stacked in gradients]
        for group in self._groups:
            group.step(unstacked)


def _groups(optimizer: torch.optim.Optimizer, place: int) -> Iterator[_Group]:
    first = 0
    for group in optimizer.param_groups:
        yield _Group(optimizer, group, place, first)
        first += len(group["params"])


class _Group:
    """A parameter group of the training at `place` in the stacks; its weights are the training's from number `first` on."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], place: int, first: int) -> None:
        # The optimizer's own dict, not a copy: a rate that is set there holds here.
        self._group, self._place, self._fused = group, place, bool(optimizer.defaults["fused"])
        weights: list[nn.Parameter] = group["params"]
        self._numbers = range(first, first + len(weights))
        self._weights = [weight.data for weight in weights]
        self._is_adam = isinstance(optimizer, torch.optim.AdamW)
        for weight in weights:
            _initialise(optimizer.state[weight], weight, ADAM if self._is_adam else SGD)
        states = [optimizer.state[weight] for weight in weights]
        self._kept = {name: [state[name] for state in states] for name in states[0] if name != "step"}
        self._steps = [state["step"] for state in states if "step" in state]

    def step(self, all_gradients: Sequence[Sequence[Tensor]]) -> None:
        """Updates the group's weights; `all_gradients` are by weight, then by training."""
        gradients, group = [all_gradients[number][self._place] for number in self._numbers], self._group
        settings: dict[str, Any] = {
            "fused": self._fused,
            "maximize": False,
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
        }
        if self._is_adam:
            (beta1, beta2), moments = group["betas"], (self._kept["exp_avg"], self._kept["exp_avg_sq"])
            settings |= {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "amsgrad": False}
            adamw(self._weights, gradients, *moments, [], self._steps, **settings)
        else:
            settings |= {name: group[name] for name in ("momentum", "dampening", "nesterov")}
            sgd(self._weights, gradients, list(self._kept["momentum_buffer"]), **settings)


def _initialise(state: dict[str, Any], weight: nn.Parameter, names: Sequence[str]) -> None:
    """Creates an optimizer's state of a weight before its first step.

    Zeros give what torch's lazy initialisation gives, for SGD only with dampening 0.
    """
    for name in names:
        if name not in state:
            state[name] = torch.zeros((), device=weight.device) if name == "step" else torch.zeros_like(weight)


def clip_each(gradients: Sequence[Tensor], limits: Tensor) -> None:
    """Clips each training's gradients, as one vector, to its own norm in `limits` (V); they lie in stacks (V, ...).

    Gradients of a smaller norm stay; a limit of infinity clips nothing.
    """
    rows = [stacked.view(len(stacked), -1) for stacked in gradients]
    norms = torch.stack([torch.linalg.vector_norm(stacked, dim=1) for stacked in rows], dim=1)
    whole = torch.linalg.vector_norm(norms, dim=1) + NORM_MARGIN
    # A NaN makes all gradients of its training NaN, as in torch's own clipping.
    over = ~(whole <= limits) & limits.isfinite()
    # A look at the norms costs less than to multiply all gradients by one.
    if over.any():
        # By the reciprocal, as torch divides a number by a tensor.
        factors = torch.where(over, whole.reciprocal() * limits, 1.0)[:, None]
        for stacked in rows:
            stacked.mul_(factors)
