"""What a constant answer measures, by the very code that measures a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heads.catalogue import TASK_FACTS, Task
from heads.data.masks import MaskFile
from heads.distributed import single_process
from heads.tasks.table import TASKS
from heads.training.metrics import MetricAccumulator, named_measures

TARGET = "constant"


def measure_constant(
    task: Task, names: Sequence[str], counts: Sequence[int], num_samples: int, cells: Sequence[str]
) -> dict[str, float]:
    """The measures, by name, of giving every sample the same probabilities, on the samples whose true cells are given.

    They are the shares of `num_samples` samples that have each class, or label, of `names`: `counts` of them, and one more, as
    Laplace's rule has it, so that none is 0.
    """
    is_class, seen = TASK_FACTS[task].tells == "class", torch.tensor(counts, dtype=torch.float64) + 1
    logits = (seen / seen.sum()).log() if is_class else (seen / (num_samples + 2)).logit()
    labels = TASKS[task].encode(cells, names, _no_mask)
    assert isinstance(labels, torch.Tensor), "masks are measured by their pixels"
    measured = MetricAccumulator({TARGET: task}, keeps_scores=True)
    with single_process():
        measured.add({TARGET: logits.float().expand(len(cells), -1)}, {TARGET: labels}, torch.ones(len(cells)))
        named = named_measures(measured.totals())
    return {name.removeprefix(f"{TARGET}/"): value for name, value in named.items()}


def measure_constant_mask(task: Task, counts: Sequence[int], true_counts: Sequence[int]) -> dict[str, float]:
    """The measures, by name, of giving every pixel the value that most pixels have by `counts` (C), the first of several; on
    masks of `true_counts` (C) pixels of each value."""
    confusion = torch.zeros(len(counts), len(counts), dtype=torch.float64)
    confusion[:, torch.tensor(counts).argmax()] = torch.tensor(true_counts, dtype=torch.float64)
    return TASKS[task].measures(confusion.flatten(), None)


def measure_constant_tags(task: Task, true_counts: Sequence[int]) -> dict[str, float]:
    """The measures, by name, of tagging every word as outside of spans, on words of `true_counts` (C) tags of each kind."""
    truths = torch.tensor(true_counts, dtype=torch.float64)
    confusion = torch.zeros(len(truths), len(truths), dtype=torch.float64)
    confusion[:, 0] = truths
    # Each span has one tag that begins it.
    spans = torch.zeros(3, len(truths) // 2, dtype=torch.float64)
    spans[0] = truths[1::2]
    return TASKS[task].measures(torch.cat([confusion.flatten(), spans.flatten()]), None)


def _no_mask(cell: str) -> MaskFile:
    raise AssertionError(f"{cell!r} is no mask")
