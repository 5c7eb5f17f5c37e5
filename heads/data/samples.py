"""The contract of samples and their preprocessing with loaders and with filling the feature store, for every modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from heads.data.feeds import Feed
from heads.data.inputs import Inputs

# How much of the prepared samples is kept in memory, so that later epochs need not prepare them again.
DEFAULT_CACHE_BYTES = 256 * 2**20

# A sample as a tensor, its label by target, its number.
Item = tuple[Tensor, dict[str, Tensor], int]


class Preprocess(Protocol):
    """How a sample becomes a network's input; hashable, and equal to another preprocessing that does the same."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values: part of a trunk's id, and kept in a bundle."""
        ...

    def describe(self) -> str:
        """What is done to a sample, in a card's words."""
        ...

    def summary(self) -> dict[str, Any]:
        """What reports show of it, as JSON values."""
        ...

    def batch_size(self, most: int) -> int:
        """How many samples a trunk is run on at once, if it is run on `most` of the usual size."""
        ...


class Samples(Protocol):
    """Labelled samples; what varies in sample i at an epoch depends on seed, epoch and i alone.

    Sample i is (tensor, {target: label}, i), labels as in `heads.data.labels`.
    """

    @property
    def labels(self) -> Mapping[str, Tensor]:
        """Labels by target; for labels that are read from files (masks), 0 if there is one, else MISSING_LABEL."""
        ...

    @property
    def digests(self) -> Sequence[str]:
        """Each sample's digest (32 hex digits), its name in the feature store."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images as a model sees them; None if samples are no images."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose variation the next samples have."""
        ...

    def view(self, index: int, number: int) -> Tensor:
        """A sample in the view of this number: 0 as evaluation sees it, the others varied by digest and number alone."""
        ...

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        """The labels of these samples by target, as they are in the view of this number."""
        ...

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        """How often each class occurs (C), and how many samples are labelled."""
        ...

    def length(self, index: int) -> int:
        """How long a sample is, where a batch costs as much as its longest one; 0 where all cost the same."""
        ...

    def words(self, indices: Sequence[int]) -> Tensor | None:
        """The `words` of `Inputs` for these samples (N, W); None if they are no texts, or no tags are asked for."""
        ...

    def collate(self, samples: Sequence[Tensor]) -> Inputs:
        """Samples as one batch."""
        ...

    def feed(self, device: torch.device) -> Feed:
        """What brings the samples to a device; `SampleFeed` for a modality that has nothing to prepare there."""
        ...
