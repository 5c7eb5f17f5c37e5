"""All shelves under one root: what they hold, whether it is whole, and keeping them under a size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadsError
from heads.features.folder import Folder
from heads.features.keys import Key, pack
from heads.features.shards import FeatureError, Layout, Shard, check_tap, read_shard
from heads.features.shelf import Shelf


@dataclass(frozen=True)
class ShelfStatus:
    """A trunk's shelf: its bytes, its different samples, how many of them lie at each tap and in which layout, its last use."""

    trunk: str
    num_bytes: int
    num_shards: int
    num_samples: int
    taps: dict[str, tuple[int, Layout]]
    used_at: datetime


@dataclass(frozen=True)
class DamagedShard:
    """A shard that is not what was written, and how it differs."""

    trunk: str
    name: str
    reason: str


@dataclass(frozen=True)
class Freed:
    """What a prune removed."""

    num_shards: int
    num_bytes: int


class FeatureStore:
    """The shelves under a folder, which is made when the first shard is written."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._shelves: dict[str, Shelf] = {}

    def shelf(self, trunk: str) -> Shelf:
        """The shelf of a trunk id, the same object each time. Raises HeadsError on what is no trunk id."""
        if not _is_trunk(trunk):
            raise HeadsError(f"{trunk!r} is no trunk id; `trunk_id` gives one, 16 hex digits")
        if trunk not in self._shelves:
            self._shelves[trunk] = Shelf(Folder(self.root / trunk), trunk)
        return self._shelves[trunk]

    def status(self) -> list[ShelfStatus]:
        """What each shelf holds by its shards' headers, the least recently used first; changes nothing."""
        return sorted((_status(trunk, folder) for trunk, folder in self._folders().items()), key=lambda shelf: shelf.used_at)

    def listed(self, trunk: str, keys: Sequence[Key], taps: Iterable[str]) -> dict[str, NDArray[np.bool_]]:
        """Which of the keys (n) each tap holds by the shards' headers; proves nothing, and changes nothing."""
        folder, wanted = Folder(self.root / trunk), pack(keys)
        read = (_read(trunk, folder, name) for name in folder.names())
        shards = [shard for shard in read if isinstance(shard, Shard)]
        return {
            tap: np.isin(wanted, np.concatenate([wanted[:0], *(shard.keys for shard in shards if tap in shard.taps)]))
            for tap in taps
        }

    def verify(self) -> list[DamagedShard]:
        """The shards that are not what was written, after reading every byte; changes nothing."""
        return [damaged for trunk, folder in self._folders().items() for damaged in _damaged(trunk, folder)]

    def prune(self, max_bytes: int) -> Freed:
        """Removes shards until the rest has at most `max_bytes`: those of the shelf used least recently first, its oldest first.

        Open readers keep what they opened. Also removes what killed writers left behind. Raises HeadsError below 0.
        """
        if max_bytes < 0:
            raise HeadsError(f"max_bytes is {max_bytes}; it must be 0 or more")
        found = []
        for folder in self._folders().values():
            entries = folder.entries()
            used_at = _used_at(folder, [entry.written_at for entry in entries])
            found += [((used_at, folder.path.name, entry.written_at, entry.name), folder, entry) for entry in entries]
        excess = sum(entry.num_bytes for _, _, entry in found) - max_bytes
        num_shards = num_bytes = 0
        for _, folder, entry in sorted(found, key=lambda one: one[0]):
            if num_bytes >= excess:
                break
            folder.remove(entry.name)
            num_shards, num_bytes = num_shards + 1, num_bytes + entry.num_bytes
        for folder in self._folders().values():
            folder.sweep()
        return Freed(num_shards, num_bytes)

    def _folders(self) -> dict[str, Folder]:
        if not self.root.is_dir():
            return {}
        return {path.name: Folder(path) for path in sorted(self.root.iterdir()) if _is_trunk(path.name) and path.is_dir()}


def _is_trunk(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}", text) is not None


def _used_at(folder: Folder, written_at: list[float]) -> float:
    return max([folder.used_at(), *written_at])


def _status(trunk: str, folder: Folder) -> ShelfStatus:
    entries = folder.entries()
    shards = [shard for entry in entries if isinstance(shard := _read(trunk, folder, entry.name), Shard)]
    taps: dict[str, tuple[int, Layout]] = {}
    for tap in sorted({tap for shard in shards for tap in shard.taps}):
        holding = [shard for shard in shards if tap in shard.taps]
        taps[tap] = (_num_keys(holding), holding[0].taps[tap].layout)
    return ShelfStatus(
        trunk=trunk,
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_shards=len(entries),
        num_samples=_num_keys(shards),
        taps=taps,
        used_at=datetime.fromtimestamp(_used_at(folder, [entry.written_at for entry in entries]), UTC),
    )


def _num_keys(shards: list[Shard]) -> int:
    return len(np.unique(np.concatenate([shard.keys for shard in shards]))) if shards else 0


def _damaged(trunk: str, folder: Folder) -> list[DamagedShard]:
    found = []
    for name in folder.names():
        shard = _read(trunk, folder, name)
        if isinstance(shard, Shard):
            shard = next((error for tap in shard.taps if (error := _check(folder, shard, tap))), shard)
        if isinstance(shard, FeatureError):
            found.append(DamagedShard(trunk, name, str(shard)))
    return found


def _read(trunk: str, folder: Folder, name: str) -> Shard | FeatureError | None:
    """A shard's header, or how it is damaged; None where it was removed meanwhile."""
    try:
        return read_shard(folder, trunk, name)
    except FileNotFoundError:
        return None
    except FeatureError as error:
        return error


def _check(folder: Folder, shard: Shard, tap: str) -> FeatureError | None:
    try:
        check_tap(folder, shard, tap)
    except FileNotFoundError:
        return None
    except FeatureError as error:
        return error
    return None
