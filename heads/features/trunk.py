"""One trunk's features: what it lacks, what is added to it, and reading it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import HeadsError
from heads.features.folder import Opened
from heads.features.keys import Key, Packed, count_samples, pack
from heads.features.place import ShardPlace
from heads.features.reading import Features, StoredTap
from heads.features.shards import DTYPES, FeatureError, Layout, Shard, StrangerError, check_tap, make_shard, read_shard

LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Index:
    """Where a tap's samples lie: sorted keys (n), and for each key the number of a shard in `shards` and a row of it."""

    layout: Layout
    shards: tuple[Shard, ...]
    keys: Packed
    numbers: NDArray[np.int32]
    rows: NDArray[np.int64]

    def find(self, wanted: Packed) -> NDArray[np.int64]:
        """For each key its place in this index, or -1."""
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, places, -1)


class TrunkFeatures:
    """The features of one trunk: any number of processes on any number of machines may read it and add to it at once.

    A tap holds samples of one shape and dtype. A sample that is stored twice is read once: both are equal, since the trunk
    id covers all that changes them. Each object of this class verifies a shard's checksums once, when its samples are first asked
    for; a damaged shard is removed with a warning, and its samples count as missing.
    """

    def __init__(self, place: ShardPlace, trunk: str) -> None:
        self.trunk, self._place = trunk, place
        self._shards: dict[str, Shard] = {}
        self._indices: dict[str, _Index] = {}
        self._proven: set[tuple[str, str]] = set()
        self._written: dict[str, Layout] = {}
        self._swept = False

    def missing(self, keys: Sequence[Key], taps: Iterable[str]) -> list[Key]:
        """The keys that are not stored whole at every one of `taps`, each once, in the order given."""
        places = self._find(pack(keys), tuple(taps))
        lacks = np.any([rows < 0 for rows in places.values()], axis=0)
        return list(dict.fromkeys(keys[number] for number in np.flatnonzero(lacks).tolist()))

    def num_samples(self, tap: str) -> int:
        """How many samples are stored at a tap, damaged ones included."""
        self._refresh()
        index = self._index(tap)
        return count_samples(index.keys) if index else 0

    def write(self, keys: Sequence[Key], tensors: Mapping[str, Tensor]) -> int:
        """Adds one shard that holds `tensors` (n, ...) by tap under `keys` (n), and gives its bytes; without keys it adds none.

        The shard appears whole. It takes twice its size in memory while it is written: 64 MiB a shard are a good size. Raises
        HeadsError if a tensor's length, shape or dtype does not fit the keys or what is stored.
        """
        if not self._swept:
            self._place.sweep()
            self._refresh()
            self._swept = True
        packed = pack(keys)
        self._check_fit(len(keys), tensors)
        if not keys:
            return 0
        name, content = make_shard(self.trunk, packed, tensors)
        self._place.put(name, content)
        self._place.touch()
        self._written |= {tap: _layout_of(tensor) for tap, tensor in tensors.items()}
        return len(content)

    def open(self, keys: Sequence[Key], taps: Iterable[str]) -> Features:
        """The features of `keys`, in their order and each as often as it is named, at `taps`.

        Shards that are removed afterwards stay readable. Raises FeatureError if some are missing: ask `missing` first.
        """
        packed, taps = pack(keys), tuple(taps)
        if not keys:
            raise HeadsError("no keys were asked for; name one or more")
        while True:
            places = self._find(packed, taps)
            for tap, rows in places.items():
                if num_lacking := int((rows < 0).sum()):
                    raise FeatureError(
                        f"{num_lacking} of {len(keys)} samples of trunk {self.trunk} are not stored at tap {tap!r}; "
                        "compute what `missing` gives, write it, and open again"
                    )
            # If a prune removes a shard after it was found and before it is opened, its samples are looked for again.
            with suppress(FileNotFoundError):
                opened: dict[str, Opened] = {}
                features = Features({tap: self._open_tap(tap, rows, opened) for tap, rows in places.items()}, len(keys))
                self._place.touch()
                return features

    def _open_tap(self, tap: str, places: NDArray[np.int64], opened: dict[str, Opened]) -> StoredTap:
        index = self._indices[tap]
        used, numbers = np.unique(index.numbers[places], return_inverse=True)
        shards = [index.shards[number] for number in used]
        for shard in shards:
            if shard.name not in opened:
                opened[shard.name] = self._place.open(shard.name)
        starts = np.array([shard.taps[tap].offset for shard in shards], np.int64)
        offsets = starts[numbers] + index.rows[places] * index.layout.num_bytes
        return StoredTap(index.layout, [opened[shard.name] for shard in shards], numbers.astype(np.int32), offsets)

    def _find(self, wanted: Packed, taps: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """By tap, the place of each wanted key in the tap's index, or -1; every shard that holds one is verified."""
        if not taps:
            raise HeadsError("no taps were asked for; name one or more")
        while True:
            self._refresh()
            places, asked = {}, []
            for tap in taps:
                index = self._index(tap)
                places[tap] = index.find(wanted) if index else np.full(len(wanted), -1)
                if index:
                    used = np.unique(index.numbers[places[tap][places[tap] >= 0]])
                    asked += [(index.shards[number], tap) for number in used]
            # A sample of a shard that was removed as damaged may be stored in another one too.
            if self._prove(asked):
                return places

    def _prove(self, asked: Sequence[tuple[Shard, str]]) -> bool:
        """Whether all of these taps of shards are whole; a damaged shard is removed."""
        unproven = [(shard, tap) for shard, tap in asked if (shard.name, tap) not in self._proven]
        outcomes = beside(self._place, lambda pair: self._attempt(pair[0].name, lambda: check_tap(self._place, *pair)), unproven)
        self._proven.update((shard.name, tap) for (shard, tap), whole in zip(unproven, outcomes, strict=True) if whole)
        return all(outcomes)

    def _attempt(self, name: str, read: Callable[[], object]) -> bool:
        """Whether a shard could be read; a damaged one is removed."""
        try:
            read()
        except (FileNotFoundError, StrangerError):
            return False
        except FeatureError as error:
            LOG.warning("removed a damaged shard of trunk %s, its samples are to be computed again: %s", self.trunk, error)
            self._place.remove(name)
            return False
        return True

    def _refresh(self) -> None:
        """Takes note of shards that came and went."""
        names = self._place.names()
        added: dict[str, Shard] = {}

        def read(name: str) -> None:
            self._attempt(name, lambda: added.setdefault(name, read_shard(self._place, self.trunk, name)))

        beside(self._place, read, [name for name in names if name not in self._shards])
        gone = self._shards.keys() - set(names)
        if added or gone:
            self._shards = {
                name: self._shards.get(name) or added[name] for name in names if name in self._shards or name in added
            }
            self._indices = {}
            self._proven = {(name, tap) for name, tap in self._proven if name not in gone}

    def _index(self, tap: str) -> _Index | None:
        if tap not in self._indices:
            shards = tuple(shard for shard in self._shards.values() if tap in shard.taps)
            if not shards:
                return None
            layouts = {shard.taps[tap].layout for shard in shards}
            if len(layouts) > 1:
                raise HeadsError(
                    f"tap {tap!r} of trunk {self.trunk} holds {' and '.join(sorted(map(str, layouts)))}; a trunk id must cover "
                    f"all that changes its features: remove {self._place} and name the trunks apart"
                )
            sizes = [len(shard.keys) for shard in shards]
            keys, first = np.unique(np.concatenate([shard.keys for shard in shards]), return_index=True)
            numbers = np.repeat(np.arange(len(shards), dtype=np.int32), sizes)[first]
            rows = np.concatenate([np.arange(size) for size in sizes])[first]
            self._indices[tap] = _Index(layouts.pop(), shards, keys, numbers, rows)
        return self._indices[tap]

    def _check_fit(self, num_keys: int, tensors: Mapping[str, Tensor]) -> None:
        if not tensors or not all(tensors):
            raise HeadsError("a shard holds one named tap or more; give a tensor by tap")
        for tap, tensor in tensors.items():
            layout = _layout_of(tensor)
            if tensor.dim() < 1 or len(tensor) != num_keys or not layout.num_bytes:
                raise HeadsError(
                    f"tap {tap!r} is {tuple(tensor.shape)}; its first dimension is {num_keys} keys, and no other is 0"
                )
            if tensor.dtype not in DTYPES.values():
                raise HeadsError(f"tap {tap!r} is {layout}; features are float32, float16 or bfloat16")
            index = self._index(tap)
            known = index.layout if index else self._written.get(tap, layout)
            if layout != known:
                raise HeadsError(f"tap {tap!r} of trunk {self.trunk} holds {known} and was given {layout}; it takes one")


def _layout_of(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape[1:]), tensor.dtype)


def beside(place: ShardPlace, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The result of `function` for each item, in order, computed by up to `place.num_readers` threads."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(place.num_readers, len(items))) as pool:
        return list(pool.map(function, items))
