"""Measures of a model on a data set over all ranks, and its predictions sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.data.loading import Loader, SampleLoader
from heads.data.samples import Samples
from heads.model.model import Model
from heads.model.precision import autocast, place_model
from heads.spec import Precision
from heads.tasks.table import TASKS
from heads.training.metrics import MetricAccumulator, MetricTotals, confusions, named_measures
from heads.training.state import Confusion


def evaluate(
    model: Model, dataset: Samples, *, device: torch.device | str, batch_size: int, precision: Precision = "fp32"
) -> tuple[dict[str, float], Confusion]:
    """Measures named `<target>/<measure>` and confusions (true, predicted) by target, over all ranks together."""
    place = torch.device(device)
    totals = measure(place_model(model, place), SampleLoader(dataset, batch_size, place), precision)
    return named_measures(totals), confusions(totals)


def predict_table(
    model: Model, dataset: Samples, *, device: torch.device | str, batch_size: int
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
                logits = model(batch.inputs)
            tally.add(logits, batch.labels, batch.weights)
    return tally.totals()
