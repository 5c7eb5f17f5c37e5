"""The state of a training between two epochs, as a file of tensors and plain values."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heads.errors import CheckpointError
from heads.schedule import Score
from heads.spec import Variant

FORMAT = 3


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: measures named `train/...` and `val/...`, wall seconds, images forwarded over all ranks, last rate.

    `score` makes an epoch the best: the mean of the targets' primary validation measures, then the lower mean loss.
    `num_frozen_stages` were frozen in it. With freeze policy `adaptive`, `movements` is how far each stage's weights moved
    and `decisions` what was decided after it and why. `ended` is why the training ends with it, or None.
    """

    index: int
    phase: int
    metrics: dict[str, float]
    seconds: float
    num_forwarded: int
    learning_rate: float
    score: Score
    num_frozen_stages: int = 0
    movements: tuple[float, ...] = ()
    decisions: tuple[str, ...] = ()
    ended: str | None = None


@dataclass(frozen=True)
class Best:
    """The best epoch so far, and the weights kept of it, on the CPU.

    By target its confusions (true class, predicted class) and the thresholds tuned in it, of the tasks that have such.
    """

    index: int
    confusion: dict[str, list[list[int]]]
    thresholds: dict[str, list[float]]
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


def weights_of(model: nn.Module, leaving_out: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers on the CPU, but of those whose names begin with one of `leaving_out`."""
    kept = ((name, tensor) for name, tensor in model.state_dict().items() if not name.startswith(leaving_out))
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept}


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
    """The progress that `save` wrote.

    Raises CheckpointError where the file is missing, damaged, pickled code, of another format or another variant's.
    """
    state = _read(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of format {FORMAT}; train without it")
    if state["variant_id"] != variant.variant_id:
        raise CheckpointError(
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
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it holds more than tensors and plain values, or is damaged") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state
