"""All trunks' features under one root: what is stored, whether it is whole, and keeping it under a size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadsError
from heads.features.bucket import ShardBucket
from heads.features.folder import ShardFolder
from heads.features.keys import Key, count_samples, pack
from heads.features.place import ShardPlace
from heads.features.shards import FeatureError, Layout, Shard, StrangerError, audit, read_shard
from heads.features.trunk import TrunkFeatures, beside

FACTS = ".json"
DESCRIPTION = re.compile(rf"[0-9a-f]{{16}}{re.escape(FACTS)}")


@dataclass(frozen=True)
class TrunkStatus:
    """What is stored of a trunk; `taps` gives the number of samples and their layout at each tap, `used_at` the last use."""

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
    """The features of trunks under a root: a folder, made with the first shard, or an address such as `s3://bucket/prefix`.

    Shards of an object store are read from copies on this machine (`heads.features.local_cache`). All methods raise
    HeadsError if the object store refuses or does not answer.
    """

    def __init__(self, root: Path | str) -> None:
        self._place = place_of(root)
        self.root = root
        self._trunks: dict[str, TrunkFeatures] = {}

    def trunk(self, trunk: str) -> TrunkFeatures:
        """The features of a trunk id, the same object each time. Raises HeadsError if `trunk` is no trunk id."""
        if not _is_trunk(trunk):
            raise HeadsError(f"{trunk!r} is no trunk id; `trunk_id` gives one, 16 hex digits")
        if trunk not in self._trunks:
            self._trunks[trunk] = TrunkFeatures(self._place.within(trunk), trunk)
        return self._trunks[trunk]

    def trunks(self) -> list[str]:
        """The ids of the trunks that have features stored, sorted."""
        return list(self._places())

    def status(self) -> list[TrunkStatus]:
        """What is stored of each trunk by its shards' headers, the least recently used first; changes nothing."""
        return sorted(
            (_status(trunk, place) for trunk, place in self._places().items()), key=lambda trunk_features: trunk_features.used_at
        )

    def listed(self, trunk: str, keys: Sequence[Key], taps: Iterable[str]) -> dict[str, NDArray[np.bool_]]:
        """By tap, which of the keys (n) are stored by the shards' headers; verifies nothing and changes nothing."""
        place, wanted = self._place.within(trunk), pack(keys)
        shards = _read(trunk, place, place.names())
        return {
            tap: np.isin(wanted, np.concatenate([wanted[:0], *(shard.keys for shard in shards if tap in shard.taps)]))
            for tap in taps
        }

    def verify(self) -> list[DamagedShard]:
        """The shards that are damaged, after reading every byte of all; changes nothing."""
        return [damaged for trunk, place in self._places().items() for damaged in _damaged(trunk, place)]

    def prune(self, max_bytes: int) -> Freed:
        """Removes shards until the rest has at most `max_bytes`: those of the trunk used least recently first, its oldest first.

        Open readers keep what they opened, and files of other programs stay. Also removes what killed writers left behind, and
        descriptions of trunks that have nothing stored any more. Raises HeadsError if `max_bytes` is below 0.
        """
        if max_bytes < 0:
            raise HeadsError(f"max_bytes is {max_bytes}; it must be 0 or more")
        shards = []
        for trunk, place in self._places().items():
            entries = place.entries()
            used_at = _used_at(place, [entry.written_at for entry in entries])
            shards += [((used_at, trunk, entry.written_at, entry.name), place, entry) for entry in entries]
        excess = sum(entry.num_bytes for _, _, entry in shards) - max_bytes
        num_shards = num_bytes = 0
        for (_, trunk, _, _), place, entry in sorted(shards, key=lambda one: one[0]):
            if num_bytes >= excess:
                break
            if _is_a_strangers(trunk, place, entry.name):
                continue
            place.remove(entry.name)
            num_shards, num_bytes = num_shards + 1, num_bytes + entry.num_bytes
        for place in self._places().values():
            place.sweep()
        self._forget_descriptions()
        return Freed(num_shards, num_bytes)

    def describe(self, trunk: str, facts: Mapping[str, Any]) -> None:
        """Stores JSON values that describe a trunk to people, unless it is described already or the root is read-only."""
        if not self.description(trunk):
            with suppress(OSError, HeadsError):
                self._place.put(f"{trunk}{FACTS}", json.dumps(facts).encode())

    def description(self, trunk: str) -> dict[str, Any]:
        """The facts that `describe` stored; empty if there are none."""
        try:
            facts: dict[str, Any] = json.loads(self._place.read(f"{trunk}{FACTS}"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return facts

    def _forget_descriptions(self) -> None:
        trunks = self._places()
        for name in self._place.names(DESCRIPTION):
            if name.removesuffix(FACTS) not in trunks:
                self._place.remove(name)

    def _places(self) -> dict[str, ShardPlace]:
        return {name: self._place.within(name) for name in self._place.places() if _is_trunk(name)}


def _is_trunk(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}", text) is not None


def _used_at(place: ShardPlace, written_at: list[float]) -> float:
    return max([place.used_at(), *written_at])


def _status(trunk: str, place: ShardPlace) -> TrunkStatus:
    entries = place.entries()
    shards = _read(trunk, place, [entry.name for entry in entries])
    taps: dict[str, tuple[int, Layout]] = {}
    for tap in sorted({tap for shard in shards for tap in shard.taps}):
        holding = [shard for shard in shards if tap in shard.taps]
        taps[tap] = (_num_keys(holding), holding[0].taps[tap].layout)
    return TrunkStatus(
        trunk=trunk,
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_shards=len(entries),
        num_samples=_num_keys(shards),
        taps=taps,
        used_at=datetime.fromtimestamp(_used_at(place, [entry.written_at for entry in entries]), UTC),
    )


def _num_keys(shards: list[Shard]) -> int:
    return count_samples(np.concatenate([shard.keys for shard in shards])) if shards else 0


def _damaged(trunk: str, place: ShardPlace) -> list[DamagedShard]:
    def read(name: str) -> DamagedShard | None:
        try:
            audit(place, trunk, name)
        except (FileNotFoundError, StrangerError):  # a shard that is removed meanwhile is not there
            return None
        except FeatureError as error:
            return DamagedShard(trunk, name, str(error))
        return None

    return [damaged for damaged in beside(place, read, place.names()) if damaged]


def _is_a_strangers(trunk: str, place: ShardPlace, name: str) -> bool:
    try:
        read_shard(place, trunk, name)
    except StrangerError:
        return True
    except (FeatureError, FileNotFoundError):
        return False
    return False


def _read(trunk: str, place: ShardPlace, names: Sequence[str]) -> list[Shard]:
    """The headers of the shards that are there and whole."""

    def read(name: str) -> Shard | None:
        with suppress(FileNotFoundError, FeatureError):
            return read_shard(place, trunk, name)
        return None

    return [shard for shard in beside(place, read, names) if shard]


def place_of(root: Path | str) -> ShardPlace:
    """A folder, or the prefix of an address such as `s3://bucket/prefix`. Raises HeadsError if its library is not installed."""
    return ShardBucket.at(root) if isinstance(root, str) and "://" in root else ShardFolder(Path(root))
