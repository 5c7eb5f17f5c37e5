"""Frozen values that travel from room to room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from heads.catalogue import Modality, Task
from heads.spec import Variant
from heads.tasks.rows import Scored

SPLITS = ("train", "val", "test")
Severity = Literal["block", "warn", "off"]  # of a guard of the gate: it keeps a candidate from promotion, or only warns


@dataclass(frozen=True, slots=True)
class Sample:
    """One image or text: md5 of its bytes, file relative to the data folder, split, and a label a target (None if missing).

    `recipe` is the number of the recipe by which its pixels are read: `heads.data.recipes` lists them.
    """

    digest: str
    file: str
    split: str
    labels: Mapping[str, str | None]
    group: str | None = None
    recipe: int = 1

    @property
    def pixel_digest(self) -> str:
        """32 hex digits that name its pixels: the digest, or a hash of digest and recipe if the recipe is a later one."""
        if self.recipe == 1:
            return self.digest
        return hashlib.md5(f"{self.digest} by recipe {self.recipe}".encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Mask:
    """A mask file: md5 of its bytes, how many of its pixels have each value, and the recipe by which it is read."""

    digest: str
    pixels: Mapping[int, int]
    recipe: int = 1

    @property
    def as_stored(self) -> bool:
        """Whether it is drawn on the image as stored, so that the image's orientation turns both."""
        return self.recipe == 3


@dataclass(frozen=True)
class Remote:
    """A DVC remote in an object store: `s3://bucket/prefix`, and the address of its server; None: as AWS tools are set."""

    address: str
    endpoint: str | None = None


@dataclass(frozen=True)
class DataVersion:
    """The content hash in `data.dvc`, the git revision that holds it, and the samples in it.

    `masks` are the mask files by their name in the data folder, as the cells of mask targets name them. `objects` are the
    folders that hold files by md5 as `<2 hex>/<30 hex>` (the DVC cache first, then a remote that is a folder); `data` is the
    working copy, `remote` the DVC remote if it is in an object store, from which machines read that reach none of them.
    """

    digest: str
    revision: str
    samples: tuple[Sample, ...]
    data: Path
    objects: tuple[Path, ...]
    masks: Mapping[str, Mask] = field(default_factory=dict)
    remote: Remote | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns, in the manifest's order."""
        return tuple(self.samples[0].labels) if self.samples else ()

    @property
    def modality(self) -> Modality:
        """What kind of sample it holds, by where these lie in the data folder."""
        return "text" if self.samples and self.samples[0].file.startswith("texts/") else "image"

    def only(self, splits: Sequence[str]) -> DataVersion:
        """The same version, of the same digest, with the samples of these splits alone and the masks that they name."""
        samples = tuple(sample for sample in self.samples if sample.split in splits)
        named = {cell for sample in samples for cell in sample.labels.values() if cell is not None}
        return replace(self, samples=samples, masks={file: self.masks[file] for file in sorted(named & self.masks.keys())})

    def part(self, samples: Sequence[Sample]) -> DataVersion:
        """Some of its samples, as a version whose digest also names these samples and their labels."""
        told = sorted(json.dumps([sample.pixel_digest, sorted(sample.labels.items())]) for sample in samples)
        key = hashlib.sha256("".join(told).encode()).hexdigest()[:12]
        return replace(self, digest=f"{self.digest}-{key}", samples=tuple(samples))


@dataclass(frozen=True)
class Workers:
    """The worker group: its workers, `least` of them where there is no room for `count`, and the GPUs and CPUs of each."""

    count: int = 1
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    least: int | None = None

    @property
    def fewest(self) -> int:
        """The fewest workers that train."""
        return self.count if self.least is None else self.least


@dataclass(frozen=True)
class Weights:
    """A backbone's first weights: a file, its digest, and its origin in words; random ones have no file and the digest 'none'."""

    digest: str
    path: Path | None = None
    origin: str = ""


@dataclass(frozen=True)
class Work:
    """A variant to train; `key` is the hash of variant id, weights digest and data version digest.

    If `is_screened`, it fine-tunes only if it is among the best after its probe phase, and its key also depends on its rivals.
    """

    key: str
    variant: Variant
    weights: Weights
    is_screened: bool = False


@dataclass(frozen=True)
class TrainedVariant:
    """A finished variant: measures named `<split>/<target>/<measure>`.

    `seconds` include its share of filling the feature store, of which `num_features_read` were read. `flops` are multiply-adds of
    its backbone, `flops_alone` those of the same epochs without a feature store.
    """

    key: str
    variant: Variant
    reused: bool
    metrics: Mapping[str, float]
    num_parameters: int
    num_trained_parameters: int
    num_forwarded: int
    seconds: float
    run_id: str | None = None
    num_features_read: int = 0
    gpu_seconds: float = 0.0
    flops: int = 0
    flops_alone: int = 0


@dataclass(frozen=True)
class FailedVariant:
    """A variant that would fail the same way every time, with the reason."""

    key: str
    variant: Variant
    reason: str
    run_id: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """The result of the train stage: the plan's variants, finished or failed; `seconds` from the first batch to the last.

    `num_forwarded` counts the samples of training and of filling the feature store, `flops_stored` the multiply-adds of the
    latter, `num_fetched` samples and masks from the data remote. `run_id` is its own MLflow run, the parent of the variants'.
    """

    variants: tuple[TrainedVariant, ...]
    num_forwarded: int
    seconds: float
    failed: tuple[FailedVariant, ...] = ()
    flops_stored: int = 0
    num_fetched: int = 0
    run_id: str = field(kw_only=True)


@dataclass(frozen=True)
class ScoreTable:
    """A model's predictions on the holdout of one data version, and its measures there named `<target>/<measure>`.

    A target that `tasks` does not name is a classification. `data_version` may be the digest of a part, and its samples then too.
    """

    bundle_digest: str
    data_version: str
    rows: tuple[Scored, ...]
    metrics: Mapping[str, float]
    tasks: Mapping[str, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The finding of one guard of the gate on a candidate: whether it passed, in words, with the figures behind them.

    `notes` are limits of the finding, such as too few samples for any test to prove a gain. If it does not pass, it keeps the
    candidate from promotion if it `blocks`, else it is a warning.
    """

    guard: str
    passed: bool
    words: str
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    blocks: bool = True


@dataclass(frozen=True)
class Verdict:
    """The gate's decision by a measure on a recipe's model: findings, their reasons in words, the paired test's figures.

    `level_spent` is the part of alpha that its look at the holdout took. A promotion that is not `superior` only ruled out a loss
    by the policy's margin. One that `waits` is proven, and not approved yet. `fresh` is the digest of the new samples that were
    bet on (`DataVersion.part`), empty if the holdout was asked.
    """

    promoted: bool
    reasons: tuple[str, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    metric: str = ""
    recipe: str = ""
    level_spent: float = 0.0
    superior: bool = True
    waits: bool = False
    fresh: str = ""
