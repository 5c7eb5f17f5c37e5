"""One update of many stacked trainings, against torch's own optimizers and clipping on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heads.fused.optimizer import FusedOptimizer, clip_each

SHAPES = ((7, 5), (7,), (1, 7), (1,))
NUM = 3
RATES, DECAYS = (0.1, 0.03, 0.01), (0.0, 0.1, 0.3)

Build = Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]


def groups_of(weights: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    return [{"params": weights[::2], "weight_decay": decay}, {"params": weights[1::2], "weight_decay": 0.0}]


def adamw(weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups_of(weights, decay), lr=rate, fused=True)


def sgd(weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups_of(weights, decay), lr=rate, momentum=0.9, nesterov=True, fused=True)


def mixed(weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return (adamw if decay else sgd)(weights, rate, decay)


def draw(seed: int) -> list[list[Tensor]]:
    """Tensors (V by weight) of every shape."""
    random = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=random) for shape in SHAPES] for _ in range(NUM)]


def make(build: Build) -> tuple[list[list[nn.Parameter]], list[torch.optim.Optimizer]]:
    weights = [[nn.Parameter(tensor) for tensor in own] for own in draw(0)]
    return weights, [build(own, rate, decay) for own, rate, decay in zip(weights, RATES, DECAYS, strict=True)]


@pytest.mark.parametrize("build", [adamw, sgd, mixed])
def test_a_joint_step_is_a_step_of_each_to_the_bit(build: Build) -> None:
    alone, optimizers = make(build)
    stacked, parts = make(build)
    stacks = [torch.stack([weight.detach() for weight in same]) for same in zip(*stacked, strict=True)]
    for place, own in enumerate(stacked):
        for weight, stack in zip(own, stacks, strict=True):
            weight.data = stack[place]
    joint = FusedOptimizer(parts)
    for number in range(1, 6):
        gradients = draw(number)
        for own, given, optimizer in zip(alone, gradients, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] *= 0.9
            for weight, gradient in zip(own, given, strict=True):
                weight.grad = gradient
            optimizer.step()
        for part in parts:
            part.param_groups[0]["lr"] *= 0.9
        in_order = [torch.stack(same) for same in zip(*gradients, strict=True)]
        joint.step([*in_order[::2], *in_order[1::2]])
    for own, weights, optimizer, part in zip(alone, stacked, optimizers, parts, strict=True):
        for expected, weight in zip(own, weights, strict=True):
            assert torch.equal(weight, expected)
            # What is kept belongs to each optimizer, so that it goes into its checkpoint.
            known = part.state[weight]
            assert known.keys() == optimizer.state[expected].keys()
            assert all(torch.equal(known[name], value) for name, value in optimizer.state[expected].items())


@pytest.mark.parametrize("limits", [(1.0, torch.inf, 100.0), (0.1, 0.3, 3.0), (5.0, 0.7, 0.0001)])
def test_each_training_is_clipped_by_its_own_norm_and_limit_to_the_bit(limits: tuple[float, ...]) -> None:
    gradients = draw(1)
    stacks = [torch.stack(same) for same in zip(*gradients, strict=True)]
    clip_each(stacks, torch.tensor(limits))
    for place, (own, limit) in enumerate(zip(gradients, limits, strict=True)):
        weights = [nn.Parameter(torch.empty_like(gradient)) for gradient in own]
        for weight, gradient in zip(weights, own, strict=True):
            weight.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(weights, limit)
        assert (norm > limit) == (limit <= 5), "those above their limits are clipped"
        for found, weight in zip(stacks, weights, strict=True):
            assert weight.grad is not None
            assert torch.equal(found[place], weight.grad)


def test_a_gradient_that_is_no_number_spoils_its_own_training_alone() -> None:
    stacks = [torch.ones(2, 3), torch.ones(2, 4, 5)]
    stacks[0][1, 0] = torch.nan
    clip_each(stacks, torch.full((2,), 1.0))
    assert all(each[0].isfinite().all() and each[1].isnan().all() for each in stacks)
