"""Networks with BatchNorms whose statistics are not those of an untrained one, and how far apart what they give is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from heads.backbones import row_of
from heads.backbones.blank import build_blank
from heads.bert_size import stages_of
from heads.phases import Tap
from heads.trunks.forward import run_stages


def num_norms(stages: nn.Module) -> int:
    """How many BatchNorms there are."""
    return sum(isinstance(part, nn.BatchNorm2d) for part in stages.modules())


def moved(stages: nn.Sequential) -> nn.Sequential:
    """The stages with random weights, and statistics that move and stretch what they are given."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(2**16, generator=random)
    for part in stages.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            for tensor, low, high in ((part.running_mean, -0.5, 0.5), (part.running_var, 0.5, 2.0)):
                tensor.uniform_(low, high, generator=random)
            for tensor, low, high in ((part.weight, 0.5, 1.5), (part.bias, -0.5, 0.5)):
                tensor.data.uniform_(low, high, generator=random)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            num = part.weight.numel()
            part.weight.data.copy_(noise.repeat(-(-num // len(noise)))[:num].view_as(part.weight))
            part.weight.data.mul_((num / len(part.weight)) ** -0.5)
    return stages.eval().requires_grad_(False)


def stages_with_norms(name: str) -> nn.Sequential:
    """The stages of a backbone."""
    return moved(nn.Sequential(OrderedDict(zip(stages_of(name), row_of(name).split(build_blank(name)), strict=True))))


def features_of(stages: nn.Sequential, samples: Tensor, precision: Any) -> dict[str, Tensor]:
    """What each stage gives."""
    return run_stages(stages, [Tap(number, "map") for number in range(len(stages))], precision, samples)


def gap(features: Tensor, expected: Tensor) -> float:
    """How far features are from the expected ones, relatively."""
    return float((features.float() - expected.float()).norm() / expected.float().norm())
