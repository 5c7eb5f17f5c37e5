"""The state of a training between two epochs, as a file of tensors and plain values."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from heads.atomic_files import appearing
from heads.errors import CheckpointError
from heads.spec import Variant
from heads.training.state import Best, Epoch, TrainingState

FORMAT = 3


def save(path: Path, variant: Variant, state: TrainingState) -> None:
    """Writes the state of a variant's training; the file appears whole or not at all."""
    # The best weights are left out if they are the present ones, which halves the file while training improves.
    is_best = state.best.index == state.epochs[-1].index
    content = {
        "format": FORMAT,
        "variant_id": variant.variant_id,
        "epochs": [_written(epoch) for epoch in state.epochs],
        "best": {**vars(state.best), "weights": None if is_best else _own(state.best.weights)},
        "model": state.model,
        "optimiser": {**state.optimizer, "state": {n: _own(s) for n, s in state.optimizer["state"].items()}},
        "balance": state.balance,
        "average": state.average,
        "scaler": state.scaler,
    }
    with appearing(path) as partial:
        torch.save(content, partial)


def _written(epoch: Epoch) -> dict[str, Any]:
    """An epoch as plain values, without what only variants have that ask for compiling: earlier versions know no such field."""
    return {name: value for name, value in asdict(epoch).items() if (name, value) != ("is_compiled", None)}


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with tensors of their own: of a view of a stack the whole stack would be written."""
    return {name: _apart(value) if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def load(path: Path, variant: Variant) -> TrainingState:
    """The state that `save` wrote.

    Raises CheckpointError if the file is missing, damaged, pickled code, of another format or another variant's.
    """
    content = _read(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of format {FORMAT}; train without it")
    if content["variant_id"] != variant.variant_id:
        raise CheckpointError(
            f"{path} is a checkpoint of variant {content['variant_id']}, not of {variant.variant_id}; resume each from its own"
        )
    best, average = content["best"], content.get("average")
    if best["weights"] is None:
        best["weights"] = {name: tensor.clone() for name, tensor in (average or content["model"]).items()}
    epochs = tuple(Epoch(**epoch) for epoch in content["epochs"])
    return TrainingState(
        epochs=epochs,
        best=Best(**best),
        model=content["model"],
        optimizer=content["optimiser"],
        balance=content.get("balance", {}),
        average=average,
        scaler=content.get("scaler"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it holds more than tensors and plain values, or is damaged") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return content
