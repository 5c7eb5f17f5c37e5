"""The state of a training between two epochs, as a file of tensors and plain values."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heads.errors import HeadsError
from heads.schedule import Score
from heads.spec import Variant

FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: measures named `train/...` and `val/...`, wall seconds, images forwarded over all ranks, last rate.

    `num_frozen_stages` were frozen in it. With freeze policy `adaptive`, `movements` is how far each stage's weights moved
    and `decisions` what was decided after it and why. `ended` is why the training ends with it, or None.
    """

    index: int
    phase: int
    metrics: dict[str, float]
    seconds: float
    num_forwarded: int
    learning_rate: float
    num_frozen_stages: int = 0
    movements: tuple[float, ...] = ()
    decisions: tuple[str, ...] = ()
    ended: str | None = None

    @property
    def score(self) -> Score:
        """What makes an epoch the best: the mean of the targets' validation accuracies, then the lower mean loss."""
        accuracies, losses = (
            [x for name, x in self.metrics.items() if name.startswith("val/") and name.endswith(end) and math.isfinite(x)]
            for end in ("/accuracy", "/loss")
        )
        return sum(accuracies) / max(1, len(accuracies)), -sum(losses) / max(1, len(losses))


@dataclass(frozen=True)
class Best:
    """The best epoch so far, its confusions (true class, predicted class) by target, and the weights kept of it, on the CPU."""

    index: int
    confusion: dict[str, list[list[int]]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """What a training goes on from, each where it has one: `balance` are the log variances that weigh its heads, `average` the
    running average of its weights, `scaler` the state of what scales float16's gradients."""

    epochs: tuple[Epoch, ...]
    best: Best
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    balance: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    scaler: dict[str, Any] | None = None


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def save(path: Path, variant: Variant, progress: Progress) -> None:
    """Writes the progress of a variant's training; the file appears whole or not at all."""
    # The best weights are left out where they are those of now, which halves the file while training improves.
    is_best = progress.best.index == progress.epochs[-1].index
    state = {
        "format": FORMAT,
        "variant_id": variant.variant_id,
        "epochs": [asdict(epoch) for epoch in progress.epochs],
        "best": {**vars(progress.best), "weights": None if is_best else progress.best.weights},
        "model": progress.model,
        "optimiser": progress.optimiser,
        "balance": progress.balance,
        "average": progress.average,
        "scaler": progress.scaler,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path, variant: Variant) -> Progress:
    """The progress that `save` wrote. Raises HeadsError where the file is missing, damaged, pickled code or another variant's."""
    state = _read(path)
    if state.get("format") != FORMAT:
        raise HeadsError(f"{path} is no checkpoint of format {FORMAT}; train without it")
    if state["variant_id"] != variant.variant_id:
        raise HeadsError(
            f"{path} is a checkpoint of variant {state['variant_id']}, not of {variant.variant_id}; resume each from its own"
        )
    best, average = state["best"], state.get("average")
    if best["weights"] is None:
        best["weights"] = {name: tensor.clone() for name, tensor in (average or state["model"]).items()}
    epochs = tuple(Epoch(**epoch) for epoch in state["epochs"])
    return Progress(
        epochs=epochs,
        best=Best(**best),
        model=state["model"],
        optimiser=state["optimiser"],
        balance=state.get("balance", {}),
        average=average,
        scaler=state.get("scaler"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise HeadsError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        raise HeadsError(f"{path} is refused: it holds more than tensors and plain values, or is damaged") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise HeadsError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise HeadsError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state
