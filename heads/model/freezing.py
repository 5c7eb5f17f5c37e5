"""Freezing that holds: no gradient, no optimizer state, statistics and dropout still."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from heads.model.model import Model
from heads.phases import Phase
from heads.spec import Fit


class ParameterGroup(TypedDict):
    """A parameter group of a torch optimizer: parameters with one learning rate and weight decay."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def apply_phase(model: Model, phase: Phase, *, backbone_is_ready: bool = False) -> None:
    """Freezes the phase's stages and thaws the others; frozen ones lose their gradients and stay in eval mode.

    `backbone_is_ready` if that was done already, by way of another model with the same backbone.
    """
    if not backbone_is_ready:
        for index, stage in enumerate(model.backbone):
            stage.requires_grad_(index >= phase.num_frozen_stages)
        for parameter in _frozen_stages(model, phase).parameters():
            parameter.grad = None
    model.num_frozen_stages = phase.num_frozen_stages
    model.train(model.training)


def parameter_groups(model: Model, phase: Phase, fit: Fit) -> list[ParameterGroup]:
    """The trained parameters by learning rate and weight decay: backbone before heads, empty groups left out.

    Frozen parameters are in none; norms, biases and per-channel scales are not decayed. With `fit.stage_decay` below 1
    each stage has its own rate, this factor of the next stage's, and the last one the backbone's: discriminative
    fine-tuning (Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018).
    """
    thawed = model.backbone[phase.num_frozen_stages :]
    # Stages that all learn alike share their groups.
    parts = [thawed] if fit.stage_decay == 1 else list(thawed)
    backbone_rate = fit.learning_rate * phase.backbone_rate_factor
    rates = [backbone_rate * fit.stage_decay**distance for distance in reversed(range(len(parts)))]
    groups = [group for part, rate in zip(parts, rates, strict=True) for group in _groups(part, rate, fit.weight_decay)]
    groups += _groups(model.heads, fit.learning_rate, fit.weight_decay)
    return [group for group in groups if group["params"]]


def _groups(part: nn.Module, rate: float, weight_decay: float) -> list[ParameterGroup]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in part.named_parameters():
        # By name as well: ConvNeXt's per-channel `layer_scale` has three dimensions. Attention's is called `in_proj_weight`.
        is_matrix = name.endswith("weight") and parameter.ndim >= 2
        (decayed if is_matrix else plain).append(parameter)
    return [
        {"params": decayed, "lr": rate, "weight_decay": weight_decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
    ]


def _frozen_stages(model: Model, phase: Phase) -> nn.Sequential:
    return model.backbone[: phase.num_frozen_stages]
