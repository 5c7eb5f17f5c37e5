"""What loaders, and whoever fills the feature store, ask of samples and their preprocessing, whatever these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from heads.data.inputs import Inputs

# Of prepared samples kept in memory, so that later epochs need not prepare them again.
DEFAULT_CACHE_BYTES = 256 * 2**20

# A sample as a tensor, its label by target, its number.
Item = tuple[Tensor, dict[str, Tensor], int]


class Preprocess(Protocol):
    """How a sample becomes what a network sees; hashable, and equal to another that does the same."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values: part of a trunk's id, and kept in a bundle."""
        ...

    def describe(self) -> str:
        """What is done to a sample, in a card's words."""
        ...

    def summary(self) -> dict[str, Any]:
        """What people are told of it, as JSON values."""
        ...

    def batch_size(self, most: int) -> int:
        """How many samples a trunk is run on at once, where `most` of the usual size are."""
        ...


class Samples(Protocol):
    """Labelled samples; what varies in sample i at an epoch depends on seed, epoch and i alone.

    Sample i is (tensor, {target: label}, i), labels as in `heads.data.labels`.
    """

    @property
    def labels(self) -> Mapping[str, Tensor]:
        """Labels by target; of a label that is read from a file (a mask) only whether there is one: 0 or MISSING_LABEL."""
        ...

    @property
    def digests(self) -> Sequence[str]:
        """What names each sample in the feature store, 32 hex digits."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images as a model sees them; None where samples are no images."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose variation the next samples have."""
        ...

    def view(self, index: int, number: int) -> Tensor:
        """A sample in one of its views: 0 as evaluation sees it, the others varied by digest and number alone."""
        ...

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        """The labels of these samples by target, as they are in one view of each."""
        ...

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        """How often each class occurs (C), and how many samples are labelled."""
        ...

    def collate(self, samples: Sequence[Tensor]) -> Inputs:
        """Samples as one batch."""
        ...
