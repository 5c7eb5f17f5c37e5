"""The measures of a holdout from its rows, those of validation: whatever classes either side knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flows.records import Scored
from heads.bundle import Bundle
from heads.bundle.predictions import DEFAULT_THRESHOLD
from heads.spec import Task
from heads.tasks import measures, multilabel, segmentation

LEAST_PROBABILITY = 1e-12


def measure_rows(rows: Sequence[Scored], bundle: Bundle) -> dict[str, float]:
    """`<target>/<measure>` of every target that has rows.

    A class that the bundle does not know is one that it never predicts. Label sets are told at the bundle's thresholds, and
    masks measured pixel by pixel over all images together, at their own size.
    """
    metrics: dict[str, float] = {}
    for head in bundle.variant.heads:
        mine = [row for row in rows if row.target == head.target]
        if mine:
            found = _measure(head.task, mine, bundle.classes[head.target], bundle.thresholds.get(head.target))
            metrics |= {f"{head.target}/{name}": value for name, value in found.items()}
    return metrics


def _measure(task: Task, rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    match task:
        case "classification":
            return measure_classes(rows)
        case "multilabel":
            return measure_label_sets(rows, names, thresholds)
        case "segmentation":
            return measure_masks(rows)


def measure_classes(rows: Sequence[Scored]) -> dict[str, float]:
    """The measures of rows of classes."""
    names = sorted({name for row in rows for name in (row.truth, *row.probabilities)})
    probabilities = _table(rows, names)
    number = {name: index for index, name in enumerate(names)}
    truths, guesses = torch.tensor([[number[row.truth], number[row.predicted]] for row in rows]).unbind(dim=1)
    confusion = torch.bincount(truths * len(names) + guesses, minlength=len(names) ** 2).reshape(len(names), len(names))
    loss = -probabilities.gather(1, truths[:, None]).clamp(min=LEAST_PROBABILITY).log().mean().item()
    return {**measures.from_counts(confusion), **measures.from_scores(probabilities, truths), "loss": loss}


def measure_label_sets(rows: Sequence[Scored], known: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """The measures of rows of label sets, labels being told from their thresholds on."""
    least = dict(zip(known, thresholds or [DEFAULT_THRESHOLD] * len(known), strict=True))
    truths = [set(row.truth.split("|")) - {""} for row in rows]
    names = sorted({*known, *(name for there in truths for name in there)})
    table = torch.tensor([[float(name in there) for name in names] for there in truths], dtype=torch.float64)
    probabilities = _table(rows, names)
    bounds = torch.tensor([least.get(name, 2.0) for name in names], dtype=torch.float64)
    found = multilabel.measures_at(torch.cat([table, probabilities], dim=1), bounds)
    chances = torch.where(table > 0, probabilities, 1 - probabilities).clamp(min=LEAST_PROBABILITY)
    return {**found, "loss": -chances.log().mean().item()}


def measure_masks(rows: Sequence[Scored]) -> dict[str, float]:
    """The measures of rows of masks, and `iou_<value>` of each class that occurs."""
    names = sorted({name for row in rows for pair in row.pixels for name in pair[:2]}, key=int)
    number = {name: index for index, name in enumerate(names)}
    confusion = torch.zeros(len(names), len(names), dtype=torch.float64)
    for row in rows:
        for truth, told, count in row.pixels:
            confusion[number[truth], number[told]] += count
    ious = dict(zip(names, segmentation.class_ious(confusion), strict=True))
    return segmentation.measures(confusion.flatten(), None) | {f"iou_{name}": iou for name, iou in ious.items()}


def _table(rows: Sequence[Scored], names: Sequence[str]) -> Tensor:
    return torch.tensor([[row.probabilities.get(name, 0.0) for name in names] for row in rows], dtype=torch.float64)
