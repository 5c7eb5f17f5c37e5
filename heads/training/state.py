"""The state of a training between two epochs, and its outcome, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heads.training.schedule import Score

# By target: counts (true class, predicted class).
Confusion = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: measures named `train/...` and `val/...`, wall seconds, samples forwarded on all ranks, last rate.

    The greatest `score` is the best: the mean of the targets' primary validation measures, then the lower mean loss.
    `num_frozen_stages` were frozen in it. With freeze policy `adaptive`, `movements` is how far each stage's weights moved
    and `decisions` what was decided after the epoch and why. `ended` is why the training ends with it, or None. `is_compiled` is
    whether steps run compiled as it ends, None of variants that do not ask for that.
    """

    index: int
    phase: int
    metrics: dict[str, float]
    seconds: float
    num_forwarded: int
    learning_rate: float
    score: Score
    num_frozen_stages: int = 0
    is_compiled: bool | None = None
    movements: tuple[float, ...] = ()
    decisions: tuple[str, ...] = ()
    ended: str | None = None


@dataclass(frozen=True)
class Best:
    """The best epoch so far, and the weights kept of it: of heads alone on their own device, else on the CPU.

    `confusion` (true class, predicted class), the tuned `thresholds` and the fitted `temperatures` are by target, for tasks that
    have them; checkpoints of before there were temperatures have none.
    """

    index: int
    confusion: dict[str, list[list[int]]]
    thresholds: dict[str, list[float]]
    weights: dict[str, Tensor]
    temperatures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingState:
    """All that a training resumes from.

    `balance` are the log variances that weigh its heads, if any, `average` is the running average of its weights, `scaler` the
    state of what scales float16's gradients.
    """

    epochs: tuple[Epoch, ...]
    best: Best
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    balance: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    scaler: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingOutcome:
    """A finished training: every epoch, and of the best one measures, and, by target, confusions (true, predicted), thresholds
    and temperatures. The measures are of temperature 1: it is fitted on the same samples, which would flatter it.

    `ended` says why there were no more epochs.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    confusion: Confusion
    thresholds: dict[str, list[float]]
    num_forwarded: int
    ended: str
    temperatures: dict[str, float] = field(default_factory=dict)


def weights_of(model: nn.Module, leaving_out: tuple[str, ...] = (), device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers on `device`, without the parts in `leaving_out`, such as `backbone.stem.`."""
    return {name: tensor.detach().to(device, copy=True) for name, tensor in _state(model, "", leaving_out).items()}


def put_back(model: nn.Module, weights: Mapping[str, Tensor], leaving_out: tuple[str, ...] = ()) -> None:
    """Copies what `weights_of` gave back into a model. Raises KeyError or RuntimeError if it is another model's."""
    state = _state(model, "", leaving_out)
    if strange := state.keys() ^ weights.keys():
        raise KeyError(", ".join(sorted(strange)))
    if reshaped := [name for name, tensor in state.items() if weights[name].shape != tensor.shape]:
        raise RuntimeError(f"of another shape: {', '.join(sorted(reshaped))}")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(weights[name])


def _state(part: nn.Module, prefix: str, leaving_out: tuple[str, ...]) -> dict[str, Tensor]:
    """A part's state by full names; parts left out are not walked, since to walk a backbone takes longer than to copy a head."""
    if not any(name.startswith(prefix) for name in leaving_out):
        return part.state_dict(prefix=prefix)
    if prefix in leaving_out:
        return {}
    # A part of which some parts are left out is a container, and has no tensors of its own.
    inner = (_state(child, f"{prefix}{name}.", leaving_out) for name, child in part.named_children())
    return {name: tensor for state in inner for name, tensor in state.items()}
