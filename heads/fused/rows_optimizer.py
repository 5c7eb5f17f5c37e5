"""One update of many trainings whose weights are rows of one matrix, each at its own rate and weight decay, by a few calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from heads.fused.row_layout import RowLayout


class RowsOptimizer(Protocol):
    """Updates weights (V, P), a row a training, as each training's own optimizer would, but for rounding."""

    def step(self, gradients: Tensor, rates: Tensor) -> None:
        """One update by the gradients (V, P), which it may overwrite, and the learning rates (V, 1)."""
        ...


def rows_optimizer(optimizers: Sequence[torch.optim.Optimizer], columns: RowLayout, weights: Tensor) -> RowsOptimizer:
    """What steps in place of these optimizers, all of one kind, whose weights lie in the rows of `weights`.

    Their own state becomes views of its state, so that it is theirs to save.
    """
    return (_AdamW if isinstance(optimizers[0], torch.optim.AdamW) else _SGD)(optimizers, columns, weights)


class _AdamW:
    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], columns: RowLayout, weights: Tensor) -> None:
        self._weights, self._decays = weights, list(_decays(optimizers, columns, weights))
        self._means, self._squares = (_bound(optimizers, columns, name) for name in ("exp_avg", "exp_avg_sq"))
        self._step = _common_step(optimizers, weights)
        self._group, self._fused = optimizers[0].param_groups[0], bool(optimizers[0].defaults["fused"])

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        # torch's kernel has one rate for a whole tensor: at a rate of 1 from zeros it gives each step's direction.
        steps, (beta1, beta2) = torch.zeros_like(self._weights), self._group["betas"]
        adamw(
            [steps],
            [gradients],
            [self._means],
            [self._squares],
            [],
            [self._step],
            fused=self._fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=1.0,
            weight_decay=0.0,
            eps=self._group["eps"],
            maximize=False,
        )
        for decayed, decays in self._decays:
            self._weights[:, decayed].mul_(1 - rates * decays)
        self._weights.addcmul_(steps, rates)


class _SGD:
    """Nesterov's momentum without dampening: its buffer begins as zeros."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], columns: RowLayout, weights: Tensor) -> None:
        self._weights, self._decays = weights, list(_decays(optimizers, columns, weights))
        self._buffer = _bound(optimizers, columns, "momentum_buffer")
        self._momentum = optimizers[0].param_groups[0]["momentum"]

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        for decayed, decays in self._decays:
            gradients[:, decayed].addcmul_(self._weights[:, decayed], decays)
        self._buffer.mul_(self._momentum).add_(gradients)
        gradients.add_(self._buffer, alpha=self._momentum)
        self._weights.addcmul_(gradients, rates, value=-1)


def _weights_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _decays(optimizers: Sequence[torch.optim.Optimizer], columns: RowLayout, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The columns of each parameter group that decays, and its weight decay in each training (V, 1)."""
    num_before = 0
    for same in zip(*(optimizer.param_groups for optimizer in optimizers), strict=True):
        num_after, decays = num_before + len(same[0]["params"]), [group["weight_decay"] for group in same]
        if any(decays):
            decayed = slice(columns.width(num_before), columns.width(num_after))
            yield decayed, torch.tensor(decays, dtype=weights.dtype, device=weights.device)[:, None]
        num_before = num_after


def _bound(optimizers: Sequence[torch.optim.Optimizer], columns: RowLayout, name: str) -> Tensor:
    """The optimizers' state of this name as rows (V, P), zeros before their first step; theirs is from now on a view of it."""
    owned = [(optimizer.state, _weights_of(optimizer)) for optimizer in optimizers]
    rows = columns.gather([[state[w].get(name, torch.zeros_like(w)) for w in weights] for state, weights in owned])
    stacks = [stack.unbind() for stack in columns.split(rows)]
    for place, (state, weights) in enumerate(owned):
        for weight, stack in zip(weights, stacks, strict=True):
            state[weight][name] = stack[place]
    return rows


def _common_step(optimizers: Sequence[torch.optim.Optimizer], weights: Tensor) -> Tensor:
    """The number of steps so far, a scalar that all optimizers share from now on."""
    states = [optimizer.state[weight] for optimizer in optimizers for weight in _weights_of(optimizer)]
    steps = torch.stack([state.get("step", torch.zeros((), device=weights.device)) for state in states])
    assert bool((steps == steps[0]).all()), "trainings side by side have made as many updates"
    step = steps[0].clone()
    for state in states:
        state["step"] = step
    return step
