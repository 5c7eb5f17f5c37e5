"""Features in the order of the keys that were asked for, read by position or held in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.features.folder import Opened
from heads.features.shards import FeatureError, Layout, bytes_of


@dataclass(frozen=True, eq=False)
class StoredTap:
    """A tap of (n) samples in files: sample i lies in `files[numbers[i]]`, `offsets[i]` bytes from its start."""

    layout: Layout
    files: Sequence[Opened] = field(repr=False)
    numbers: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def gather(self, positions: Tensor) -> Tensor:
        """The features (b, ...) of the samples at `positions` (b), read in the order of the files, neighbours in one read."""
        asked = positions.numpy()
        numbers, offsets, num_bytes = self.numbers[asked], self.offsets[asked], self.layout.num_bytes
        rows = torch.empty((len(asked), *self.layout.shape), dtype=self.layout.dtype)
        if not len(asked):
            return rows
        buffer, order = bytes_of(rows), np.lexsort((offsets, numbers))
        numbers, offsets = numbers[order], offsets[order]
        joined = (np.diff(order) == 1) & (np.diff(numbers) == 0) & (np.diff(offsets) == num_bytes)
        starts = np.flatnonzero(np.concatenate([[True], ~joined]))
        ends = np.append(starts[1:], len(asked))
        for row, number, offset, length in zip(
            order[starts].tolist(), numbers[starts].tolist(), offsets[starts].tolist(), (ends - starts).tolist(), strict=True
        ):
            if not self.files[number].read_into(buffer[row * num_bytes : (row + length) * num_bytes], offset):
                raise FeatureError("a shard was cut short while it was read; ask the trunk's features again what is missing")
        return rows


@dataclass(frozen=True, eq=False)
class HeldTap:
    """A tap of (n) samples in memory, on any device."""

    layout: Layout
    rows: Tensor = field(repr=False)

    def gather(self, positions: Tensor) -> Tensor:
        """The features (b, ...) of the samples at `positions` (b)."""
        return self.rows.index_select(0, positions.to(self.rows.device, non_blocking=True))


class Features:
    """The stored features of some keys of one trunk, by tap; position i is the i-th key asked for.

    `features[positions]`, a LongTensor (b), gives for each tap a new tensor (b, ...) of the dtype that was stored. It may be
    read from several threads and from forked processes. Raises IndexError on a position out of range.
    """

    def __init__(self, taps: Mapping[str, StoredTap | HeldTap], num_samples: int) -> None:
        self._taps, self._num_samples = dict(taps), num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, positions: Tensor) -> dict[str, Tensor]:
        return {tap: source.gather(positions) for tap, source in self._taps.items()}

    @property
    def layouts(self) -> dict[str, Layout]:
        """The shape of a sample and the dtype, by tap."""
        return {tap: source.layout for tap, source in self._taps.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that `in_memory` takes."""
        return len(self) * sum(source.layout.num_bytes for source in self._taps.values())

    def in_memory(self, device: torch.device | str = "cpu") -> Features:
        """The same features held on `device`, where a batch is one gather; worth it if `num_bytes` are few."""
        everything = torch.arange(len(self))
        held = {tap: HeldTap(source.layout, source.gather(everything).to(device)) for tap, source in self._taps.items()}
        return Features(held, len(self))
