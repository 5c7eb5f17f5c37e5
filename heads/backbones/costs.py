"""The costs of a backbone's stages: parameters and multiply-adds, counted without computing them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from heads.backbones.blank import build_skeleton
from heads.backbones.products import ProductCounter, empty_of_memory
from heads.backbones.table import row_of
from heads.bert_size import stages_of

# These multiply no matrices and keep shapes, yet are computed.
ELEMENTWISE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Dropout)


@dataclass(frozen=True)
class StageCost:
    """A stage's cost at one size of samples: parameters, multiply-adds for one sample, the shape of that sample's features."""

    stage: str
    parameters: int
    multiply_adds: int
    shape: tuple[int, ...]


@cache
def count_costs(name: str, size: int) -> tuple[StageCost, ...]:
    """The costs of every stage of a backbone, front to back, for one sample of this size: an image's side in pixels.

    Multiply-adds are those of convolutions and matrix products, half of what is often called FLOPs.
    """
    backbone, costs = row_of(name), list[StageCost]()
    stages = nn.ModuleList(backbone.split(build_skeleton(name).eval()))
    num_parameters = [sum(parameter.numel() for parameter in stage.parameters()) for stage in stages]
    empty_of_memory(stages)
    _leave_out(stages, ELEMENTWISE)
    features = backbone.example(size)
    for stage_name, stage, parameters in zip(stages_of(name), stages, num_parameters, strict=True):
        features, multiply_adds = _run(stage, features)
        costs.append(StageCost(stage_name, parameters, multiply_adds, tuple(features.shape[1:])))
    return tuple(costs)


def _leave_out(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    for name, child in list(part.named_children()):
        if isinstance(child, kinds):
            setattr(part, name, nn.Identity())
        else:
            _leave_out(child, kinds)


def _run(stage: nn.Module, features: Tensor) -> tuple[Tensor, int]:
    with torch.no_grad(), ProductCounter() as counter:
        output: Tensor = stage(features)
    return output, counter.multiply_adds
