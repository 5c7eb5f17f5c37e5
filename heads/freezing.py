"""From a freeze policy to phases, and freezing that holds: no gradient, no optimiser state, statistics and dropout still."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypedDict

import torch
from torch import Tensor, nn

from heads.model import Model
from heads.spec import BACKBONE_STAGES, Fit, Variant, frozen_through

# Fine-tuning after the heads have settled moves the backbone gently, or it loses what it was taken for
# (Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
LP_FT_BACKBONE_RATE_FACTOR = 0.1


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which the first `num_frozen_stages` of the backbone are frozen."""

    first_epoch: int
    num_epochs: int
    num_frozen_stages: int
    backbone_rate_factor: float = 1.0


class ParameterGroup(TypedDict):
    """What an optimiser takes: parameters with one learning rate and weight decay."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def compile_policy(variant: Variant) -> tuple[Phase, ...]:
    """The phases of a variant's freeze policy, in order, that together cover its epochs."""
    epochs, stages = variant.fit.epochs, BACKBONE_STAGES[variant.backbone]
    match variant.freeze:
        # `adaptive` begins with all stages thawed; `heads.adaptive` decides on the way.
        case "none" | "adaptive":
            return (Phase(0, epochs, 0),)
        case "all":
            return (Phase(0, epochs, len(stages)),)
        case "gradual":
            return _gradual(epochs, len(stages))
        case "lp_ft":
            return _lp_ft(epochs, len(stages))
    stage = frozen_through(variant.freeze, variant.backbone)
    assert stage is not None
    return (Phase(0, epochs, stages.index(stage) + 1),)


def _gradual(epochs: int, num_stages: int) -> tuple[Phase, ...]:
    stride = max(1, epochs // (num_stages + 1))
    starts = range(0, epochs, stride)[: num_stages + 1]
    ends = [*starts[1:], epochs]
    return tuple(
        Phase(start, end - start, num_stages - thawed) for thawed, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _lp_ft(epochs: int, num_stages: int) -> tuple[Phase, ...]:
    probing = max(1, epochs // 3)
    phases = (
        Phase(0, probing, num_stages),
        Phase(probing, epochs - probing, 0, LP_FT_BACKBONE_RATE_FACTOR),
    )
    return tuple(phase for phase in phases if phase.num_epochs)


def phase_number(phases: Sequence[Phase], epoch: int) -> int:
    """The number of the phase that an epoch belongs to."""
    return max(number for number, phase in enumerate(phases) if phase.first_epoch <= epoch)


def apply_phase(model: Model, phase: Phase) -> None:
    """Freezes the phase's stages and thaws the others; frozen ones lose their gradients and stay in eval mode."""
    for index, stage in enumerate(model.backbone):
        stage.requires_grad_(index >= phase.num_frozen_stages)
    for parameter in _frozen_stages(model, phase).parameters():
        parameter.grad = None
    model.num_frozen_stages = phase.num_frozen_stages
    model.train(model.training)


def optimiser_groups(model: Model, phase: Phase, fit: Fit) -> list[ParameterGroup]:
    """The trained parameters by learning rate and weight decay: backbone before heads, empty groups left out.

    Frozen parameters are in none; norms, biases and per-channel scales are not decayed. With `fit.stage_decay` below 1
    each stage has its own rate, that factor of the next stage's, the last one the backbone's: discriminative
    fine-tuning (Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018).
    """
    thawed = model.backbone[phase.num_frozen_stages :]
    # Where all stages learn alike they share their groups.
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


def frozen_digest(model: Model, phase: Phase) -> str:
    """The sha256 of the frozen stages' parameters and buffers, names and bytes, as 64 hex digits."""
    frozen = _frozen_stages(model, phase)
    return _digest(chain(frozen.named_parameters(), frozen.named_buffers()))


def _frozen_stages(model: Model, phase: Phase) -> nn.Sequential:
    return model.backbone[: phase.num_frozen_stages]


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
