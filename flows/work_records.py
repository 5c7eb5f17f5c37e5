"""What the files of a work hold, as values: its epochs, its result, or why it failed for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.files import read_value


@dataclass(frozen=True)
class EpochRecord:
    """A finished epoch: its measures, named `train/...` and `val/...`, and its wall seconds.

    `decisions` are those of adaptive freezing after it; `ended` is why the training ended with it, None if it went on;
    `is_compiled` whether its steps ran compiled as it ended, None if the variant does not ask for that.
    """

    epoch: int
    phase: int
    metrics: Mapping[str, float]
    seconds: float
    # Missing in epochs of earlier versions.
    num_frozen_stages: int | None = None
    decisions: tuple[str, ...] = ()
    ended: str | None = None
    is_compiled: bool | None = None


@dataclass(frozen=True)
class MaskExample:
    """A validation image with its true and its predicted mask, as PNG files in the work's folder.

    `right` is the share of the labelled pixels that are right, `colours` are the hex colours of the mask's values; `image`,
    `truth` and `told` (the prediction) are the names of the files.
    """

    target: str
    file: str
    right: float
    colours: Mapping[str, str]
    image: str
    truth: str
    told: str


@dataclass(frozen=True, kw_only=True)
class WorkResult:
    """The content of `result.json`, of a finished work.

    `variant` is its spec in JSON's values. `num_forwarded` counts images, `num_features_read` stored samples; `flops` are
    multiply-adds of its backbone, `flops_alone` those of the same epochs without a feature store. `seconds` include
    `shared_seconds`, its share of filling the store. `confusion` counts (true, predicted) by target. A field is None if the
    file, of an earlier version, lacks it.
    """

    work_key: str
    variant: Mapping[str, Any] | None = None
    metrics: Mapping[str, float]
    num_parameters: int
    num_trained_parameters: int
    num_forwarded: int
    num_features_read: int | None = None
    flops: int | None = None
    flops_alone: int | None = None
    seconds: float
    shared_seconds: float | None = None
    gpu_seconds: float | None = None
    best_epoch: int | None = None
    ended: str | None = None
    epochs: tuple[EpochRecord, ...]
    confusion: Mapping[str, Sequence[Sequence[int]]]
    classes: Mapping[str, Sequence[str]]
    examples: tuple[MaskExample, ...] | None = None


@dataclass(frozen=True)
class WorkFailure:
    """The content of `failure.json`: why a work would fail the same way every time, and the epochs that it had."""

    work_key: str
    reason: str
    epochs: tuple[EpochRecord, ...]


def result_json(result: WorkResult) -> Mapping[str, object]:
    """A result as JSON values, as the file holds it."""
    return written(result) | {"epochs": [written(epoch) for epoch in result.epochs]}


def read_epochs(rows: Sequence[Mapping[str, Any]]) -> tuple[EpochRecord, ...]:
    """The epochs of their JSON values, the first one first."""
    return tuple(read_value(EpochRecord, {**row, "decisions": tuple(row.get("decisions", ()))}) for row in rows)


def written(value: EpochRecord | WorkResult) -> dict[str, object]:
    """The fields of a value that are not None."""
    return {name: content for name, content in asdict(value).items() if content is not None}
