"""Measures of a model on a dataset over all ranks, and its predictions image by image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heads.dataset import ImageDataset
from heads.errors import HeadsError
from heads.kinds import KINDS
from heads.model import Model
from heads.sampling import ImageLoader, Loader
from heads.spec import Precision
from heads.tally import Tally, Total

Confusion = dict[str, list[list[int]]]


def evaluate(
    model: Model, dataset: ImageDataset, *, device: torch.device | str, batch_size: int, precision: Precision = "fp32"
) -> tuple[dict[str, float], Confusion]:
    """Measures named `<target>/<measure>` and confusions (true, predicted) by target, over all ranks together."""
    place = torch.device(device)
    totals = measure(place_model(model, place), ImageLoader(dataset, batch_size, place), precision)
    return named_measures(totals), confusions(totals)


def predict_table(
    model: Model, dataset: ImageDataset, *, device: torch.device | str, batch_size: int
) -> list[tuple[int, dict[str, Tensor]]]:
    """For each image its index and, by target, its probabilities (C, of masks C, S, S) on the CPU, all in this process."""
    place, table = torch.device(device), []
    place_model(model, place).eval()
    with torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            images = torch.stack([dataset[index][0] for index in indices]).to(place, memory_format=torch.channels_last)
            logits = model(images)
            probabilities = {target: KINDS[model.tasks[target]].activate(found).cpu() for target, found in logits.items()}
            table += [(index, {target: rows[row] for target, rows in probabilities.items()}) for row, index in enumerate(indices)]
    return table


def place_model(model: Model, device: torch.device, *, channels_last: bool = True) -> Model:
    """The model itself on `device`, its weights laid out channels last: up to three times as fast, on a CPU too."""
    for part in model.children():
        # A backbone that many models share is placed once: to go through it takes longer than a step of a head.
        if not _is_placed(part, device, channels_last=channels_last):
            part.to(device)
            if channels_last:
                part.to(memory_format=torch.channels_last)
    return model


def _is_placed(part: nn.Module, device: torch.device, *, channels_last: bool) -> bool:
    return all(
        tensor.device == device
        and (not channels_last or tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last))
        for tensor in (*part.parameters(), *part.buffers())
    )


def measure(model: Model, loader: Loader, precision: Precision) -> dict[str, Total]:
    """The totals of one pass over all ranks' data, by target; leaves the model in eval mode."""
    tally = Tally(model.tasks, keeps_scores=True)
    model.eval()
    with torch.no_grad():
        for batch in loader:
            with autocast(loader.device, precision):
                logits = model(batch.inputs, batch.size)
            tally.add(logits, batch.labels, batch.weights)
    return tally.totals()


def named_measures(totals: Mapping[str, Total]) -> dict[str, float]:
    """Measures named `<target>/<measure>`."""
    return {f"{target}/{name}": x for target, total in totals.items() for name, x in total.measures.items()}


def confusions(totals: Mapping[str, Total]) -> Confusion:
    """Counts (true class, predicted class) by target, of the tasks that have such a table."""
    return {target: table for target, total in totals.items() if (table := total.confusion) is not None}


def thresholds(totals: Mapping[str, Total]) -> dict[str, list[float]]:
    """From which probability on each class is meant, by target, of the tasks that have such thresholds."""
    return {target: found for target, total in totals.items() if (found := total.thresholds) is not None}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Where a forward pass runs in the arithmetic of `computing_dtype`."""
    dtype = computing_dtype(device, precision)
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else None, enabled=half)


def computing_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The arithmetic of a forward pass: the one asked for, or by `auto` bfloat16 on a GPU that has it, else float32.

    Raises HeadsError on float16 elsewhere than on CUDA, where gradients would vanish unscaled and nothing is gained.
    """
    if precision == "fp16":
        if device.type != "cuda":
            raise HeadsError(f"precision fp16 needs a CUDA GPU, but this is {device.type}; use auto, fp32 or bf16")
        return torch.float16
    automatic = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if automatic or precision == "bf16" else torch.float32
