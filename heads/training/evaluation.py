"""Measures of a model on a dataset over all ranks, and its predictions image by image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from heads.data.dataset import ImageDataset
from heads.data.loading import ImageLoader, Loader
from heads.model.model import Model
from heads.model.precision import autocast, place_model
from heads.spec import Precision
from heads.tasks.table import TASKS
from heads.training.metrics import MetricAccumulator, MetricTotals
from heads.training.state import Confusion


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
            probabilities = {target: TASKS[model.tasks[target]].activate(found).cpu() for target, found in logits.items()}
            table += [(index, {target: rows[row] for target, rows in probabilities.items()}) for row, index in enumerate(indices)]
    return table


def measure(model: Model, loader: Loader, precision: Precision) -> dict[str, MetricTotals]:
    """The totals of one pass over all ranks' data, by target; leaves the model in eval mode."""
    tally = MetricAccumulator(model.tasks, keeps_scores=True)
    model.eval()
    with torch.no_grad():
        for batch in loader:
            with autocast(loader.device, precision):
                logits = model(batch.inputs, batch.size)
            tally.add(logits, batch.labels, batch.weights)
    return tally.totals()


def named_measures(totals: Mapping[str, MetricTotals]) -> dict[str, float]:
    """Measures named `<target>/<measure>`."""
    return {f"{target}/{name}": x for target, total in totals.items() for name, x in total.measures.items()}


def confusions(totals: Mapping[str, MetricTotals]) -> Confusion:
    """Counts (true class, predicted class) by target, of the tasks that have such a table."""
    return {target: table for target, total in totals.items() if (table := total.confusion) is not None}


def thresholds(totals: Mapping[str, MetricTotals]) -> dict[str, list[float]]:
    """From which probability on each class is meant, by target, of the tasks that have such thresholds."""
    return {target: found for target, total in totals.items() if (found := total.thresholds) is not None}
