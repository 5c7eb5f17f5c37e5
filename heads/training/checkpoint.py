"""The state of a training between two epochs, as a file of tensors and plain values."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from heads.appearing import appearing
from heads.errors import CheckpointError
from heads.spec import Variant
from heads.training.state import Best, Epoch, Progress

FORMAT = 3


def save(path: Path, variant: Variant, progress: Progress) -> None:
    """Writes the progress of a variant's training; the file appears whole or not at all."""
    # The best weights are left out if they are the present ones, which halves the file while training improves.
    is_best = progress.best.index == progress.epochs[-1].index
    state = {
        "format": FORMAT,
        "variant_id": variant.variant_id,
        "epochs": [_written(epoch) for epoch in progress.epochs],
        "best": {**vars(progress.best), "weights": None if is_best else _own(progress.best.weights)},
        "model": progress.model,
        "optimiser": {**progress.optimizer, "state": {n: _own(s) for n, s in progress.optimizer["state"].items()}},
        "balance": progress.balance,
        "average": progress.average,
        "scaler": progress.scaler,
    }
    with appearing(path) as partial:
        torch.save(state, partial)


def _written(epoch: Epoch) -> dict[str, Any]:
    """An epoch as plain values, without what only variants have that ask for compiling: earlier versions know no such field."""
    return {name: value for name, value in asdict(epoch).items() if (name, value) != ("is_compiled", None)}


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with tensors of their own: of a view of a stack the whole stack would be written."""
    return {name: _apart(value) if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def load(path: Path, variant: Variant) -> Progress:
    """The progress that `save` wrote.

    Raises CheckpointError if the file is missing, damaged, pickled code, of another format or another variant's.
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
        optimizer=state["optimiser"],
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
