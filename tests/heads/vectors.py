"""A modality that Headstart does not have, with a backbone that reads it: vectors, to try that nothing else has to know images.

A sample is a file of numbers, one or more, filled up with zeros beside longer ones.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from heads.backbones import BACKBONES, Backbone
from heads.catalogue import BACKBONE_STAGES, FIT_FIELDS_OF, MODALITY_OF
from heads.data.feeds import SampleFeed
from heads.data.inputs import Inputs
from heads.data.labels import has_label
from heads.data.masks import Masks
from heads.data.modalities import MODALITIES
from heads.data.samples import Item
from heads.data.tags import Tags
from heads.data.wordpiece import Vocabulary
from heads.spec import Fit, Variant

BACKBONE, LENGTH, STAGES = "perceptron", 8, ("stem", "layer1")
LIBRARIES = ("torch", "numpy")
PLAIN_VIEW = ("plain",)


@dataclass(frozen=True)
class Scale:
    """Every number divided by `by`."""

    by: float = 10.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        return f"every number divided by {self.by:g}"

    def summary(self) -> dict[str, Any]:
        return {"by": self.by}

    def batch_size(self, most: int) -> int:
        return most


class Vectors:
    """Files of numbers as samples; views beyond the first, and epochs of training, add a little noise."""

    def __init__(
        self, files: Sequence[Path], labels: Mapping[str, Tensor], digests: Sequence[str], seed: int, varied: bool
    ) -> None:
        self.files, self.labels, self.digests, self.seed, self.varied = files, labels, digests, seed, varied
        self.size, self.epoch = None, 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng((self.seed, self.epoch, index)) if self.varied else None
        return self._read(index, random), {target: column[index] for target, column in self.labels.items()}, index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def view(self, index: int, number: int) -> Tensor:
        return self._read(index, np.random.default_rng((int(self.digests[index], 16), number)) if number else None)

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        return {target: column[indices] for target, column in self.labels.items()}

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        labelled = self.labels[target][has_label(self.labels[target])]
        return labelled.bincount(), len(labelled)

    def collate(self, samples: Sequence[Tensor]) -> Inputs:
        rows = pad_sequence(list(samples), batch_first=True)
        return Inputs(nn.functional.pad(rows, (0, LENGTH - rows.shape[1])))

    def length(self, index: int) -> int:
        return 0

    def words(self, indices: Sequence[int]) -> None:
        pass

    def feed(self, device: torch.device) -> SampleFeed:
        return SampleFeed(self)

    def _read(self, index: int, random: np.random.Generator | None) -> Tensor:
        numbers = np.loadtxt(self.files[index], dtype=np.float32, ndmin=1) / Scale().by
        return torch.from_numpy(numbers if random is None else numbers + random.normal(0, 0.01, numbers.shape).astype(np.float32))


def varied_view(fit: Fit) -> tuple[str, ...]:
    return ("noise",)


def describe_view(view: tuple[str | bool, ...]) -> str:
    return str(view[0])


def preprocess_of(variant: Variant) -> Scale:
    return Scale()


def read_preprocess(value: Mapping[str, Any]) -> Scale:
    return Scale(**value)


def vocabulary_of(variant: Variant, weights: Path | None, train: Sequence[Path]) -> None:
    """Nothing: vectors hold no words."""


def prepared_on(device: torch.device) -> str:
    return ""


def size_of(fit: Fit) -> int:
    return LENGTH


def prepare_seconds(size: int) -> float:
    return 1e-3


def read_seconds(size: int) -> float:
    return 2e-3


def kept_seconds(size: int) -> float:
    return 1e-3


def kept_bytes(size: int) -> int:
    return 4 * size


def open_samples(
    variant: Variant,
    files: Sequence[Path],
    labels: Mapping[str, Sequence[int] | Tensor],
    masks: Mapping[str, Masks] | None = None,
    digests: Sequence[str] = (),
    *,
    varied: bool,
    cache_bytes: int,
    vocabulary: Vocabulary | None = None,
    tags: Mapping[str, Tags] | None = None,
) -> Vectors:
    assert not masks
    columns = {target: torch.as_tensor(column) for target, column in labels.items()}
    return Vectors(files, columns, digests, variant.fit.seed, varied)


class Perceptron(nn.Module):
    """Two layers and a classifier, as a published model would have one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.classifier = nn.Linear(LENGTH, 16), nn.Linear(16, 32), nn.Linear(32, 2)


def split(model: nn.Module) -> list[nn.Module]:
    """Stages whose features are maps of one position, as heads of classes read them."""
    assert isinstance(model, Perceptron)
    stem = OrderedDict([("linear", model.stem), ("relu", nn.ReLU()), ("map", nn.Unflatten(1, (16, 1, 1)))])
    last = OrderedDict(
        [("flat", nn.Flatten()), ("linear", model.layer1), ("relu", nn.ReLU()), ("map", nn.Unflatten(1, (32, 1, 1)))]
    )
    return [nn.Sequential(stem), nn.Sequential(last)]


def add_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enters the modality and its backbone in the closed tables, until the test ends: one line in each."""
    import tests.heads.vectors as modality

    monkeypatch.setitem(BACKBONE_STAGES, BACKBONE, STAGES)  # type: ignore[arg-type]
    monkeypatch.setitem(MODALITY_OF, BACKBONE, "vector")  # type: ignore[arg-type]
    monkeypatch.setitem(FIT_FIELDS_OF, "vector", frozenset())  # type: ignore[arg-type]
    monkeypatch.setitem(MODALITIES, "vector", modality)  # type: ignore[arg-type]
    backbone = Backbone(Perceptron, None, split, (16, 32), (1, 1), example=lambda size: torch.zeros(1, size, device="meta"))
    monkeypatch.setitem(BACKBONES, BACKBONE, backbone)


def write_vectors(folder: Path, count: int) -> list[Path]:
    """Files whose class, their number modulo 2, is told by the sign of their sum; every third is shorter."""
    files = []
    for number in range(count):
        random = np.random.default_rng(number)
        numbers = random.normal(4.0 if number % 2 else -4.0, 3.0, LENGTH - 3 if number % 3 == 0 else LENGTH)
        files.append(folder / f"{number:03}.txt")
        np.savetxt(files[-1], numbers)
    return files


def digests_of(files: Sequence[Path]) -> list[str]:
    """The md5 of each file."""
    return [hashlib.md5(file.read_bytes()).hexdigest() for file in files]
