"""The tasks behind one contract: how a cell becomes a label, the head, its loss, its measures, its answer and its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heads.backbones.row import Backbone
from heads.catalogue import Task
from heads.data.masks import Masks, OpenMask
from heads.data.tags import Tags
from heads.spec import Fit, Head
from heads.tasks import classification, multilabel, segmentation, tagging
from heads.tasks.answers import Answer, Extent, ReadMask
from heads.tasks.rows import Scored


class Criterion(Protocol):
    """The loss that a training minimises for one target."""

    @property
    def by_row(self) -> bool:
        """Whether a sample's loss and gradient are the same to the bit beside any other samples."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample in nats (N), 0 if it has no label."""
        ...


class TaskHead(Protocol):
    """The contract of a task. Of N samples and C classes, labels are as in `heads.data.labels`, logits (N, C) or, of masks,
    (N, C, H, W), of tags (N, C, W) or (N, C, W, C)."""

    @property
    def PLAIN(self) -> Criterion:  # noqa: N802
        """The criterion of validation, alike for all variants so that they compare."""
        ...

    def taps(self, design: str, backbone: Backbone) -> tuple[int, ...]:
        """The numbers of the stages whose features a head of this design takes, front to back."""
        ...

    def build_head(self, head: Head, fit: Fit, backbone: Backbone, num_classes: int) -> nn.Module:
        """A head that takes the features of its taps, one argument each, and gives logits (masks: at any resolution)."""
        ...

    def criterion_of(self, fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
        """The fit's criterion, given the occurrences of each class (C) over `num_samples` labelled samples of the train split."""
        ...

    def start_head(self, net: nn.Module, fit: Fit, counts: Tensor, num_samples: int) -> None:
        """Set where a new head begins, given the same occurrences; most heads begin as they are built, and favour no class."""
        ...

    def count(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """A batch's counts as a row of float64, to be summed over batches and ranks; weight 0 and missing labels add nothing.

        Of classes and labels also a row a model, from logits (V, N, C) of several models."""
        ...

    def score(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor | None:
        """A row a sample (N, K), float32, beginning with MISSING_LABEL if the sample does not count; None if no rows are kept."""
        ...

    def measures(self, counts: Tensor, scores: Tensor | None) -> dict[str, float]:
        """Every measure by name from a summed `count` and, if they were kept, the `score` rows of the samples that count."""
        ...

    def measures_of_each(self, counts: Tensor, scores: Tensor | None) -> list[dict[str, float]]:
        """The `measures` of several models on the same samples, from their counts (V, ...) and scores (V, N, K)."""
        ...

    def confusion(self, counts: Tensor) -> list[list[int]] | None:
        """Counts (true class, predicted class); None if the task has no such table."""
        ...

    def temperatures(self, scores: Tensor) -> Sequence[float | None]:
        """What each model's logits have to be divided by for probabilities that hold on its rows (V, N, K); None of no rows."""
        ...

    def thresholds(self, scores: Tensor, temperature: float = 1.0) -> list[float] | None:
        """The probability from which on each class is predicted, tuned on these rows; None if the task has no thresholds.

        The rows' probabilities are those of temperature 1, the thresholds of the temperature that is given.
        """
        ...

    def activate(self, logits: Tensor) -> Tensor:
        """Logits as probabilities, float32."""
        ...

    def encode(self, cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Tensor | Masks | Tags:
        """The labels of a column of cells as a data set takes them; None is an empty cell."""
        ...

    def answer(self, names: Sequence[str], logits: Tensor, extent: Extent, thresholds: Sequence[float] | None = None) -> Answer:
        """The answer that one sample's logits give, (C), of masks (C, S, S), of tags (C, W) or (C, W, C)."""
        ...

    def judge(self, digest: str, answer: Any, truth: str, head: Head, read_mask: ReadMask) -> Scored:
        """The answer and the truth, which is the sample's cell, as a row; a mask is read by `read_mask`, in the answer's size."""
        ...

    def measure_rows(self, rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
        """The same measures as on validation, from rows; `names` and `thresholds` are the model's."""
        ...

    def class_measures(self, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
        """Measures of single classes by name; empty if the task has none beside its confusion."""
        ...

    def describe(self, head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
        """What a head distinguishes, in a card's words."""
        ...


TASKS: Mapping[Task, TaskHead] = {
    "classification": classification,
    "multilabel": multilabel,
    "segmentation": segmentation,
    "tagging": tagging,
}
