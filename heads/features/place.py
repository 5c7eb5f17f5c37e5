"""A place: objects that are put whole, listed, read by position and removed; a local folder, or a prefix of an object store."""

from __future__ import annotations

import re
from typing import Protocol

from heads.features.folder import SHARD, Opened, ShardFile


class Readable(Protocol):
    """Bytes that are read by position until they are closed."""

    num_bytes: int

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` with the bytes from `offset` on; False if they end before."""

    def close(self) -> object:
        """Ends the reading."""


class ShardPlace(Protocol):
    """Where shards and smaller objects about them lie; any number of processes may read and write them without a lock.

    An object never changes under its name. A place may keep copies nearer to the reader, and a copy may be damaged while
    the object is whole.
    """

    @property
    def num_readers(self) -> int:
        """How many objects to read concurrently."""

    def within(self, name: str) -> ShardPlace:
        """The place of that name in this one, there or not."""

    def places(self) -> list[str]:
        """The names of the places in this one that hold anything, sorted."""

    def put(self, name: str, content: bytes) -> None:
        """Makes `content` appear under a name, whole; what has that name already holds the same."""

    def entries(self) -> list[ShardFile]:
        """The shards that lie here now, by name."""

    def names(self, form: re.Pattern[str] = SHARD) -> list[str]:
        """The names of this form that lie here now, sorted."""

    def read(self, name: str) -> bytes:
        """A small object. Raises FileNotFoundError if it is gone."""

    def peek(self, name: str) -> Readable:
        """A shard, for reading its header alone. Raises FileNotFoundError if it is gone."""

    def open(self, name: str) -> Opened:
        """A shard for reading its rows, from a copy if one is kept. Raises FileNotFoundError if it is gone."""

    def open_here(self, name: str) -> Opened:
        """A shard as it lies here, whatever a copy says. Raises FileNotFoundError if it is gone."""

    def forget(self, name: str) -> bool:
        """Drops the copy of a shard; True if this place keeps copies, so that the shard is worth reading again."""

    def remove(self, name: str) -> None:
        """Removes an object, if it is there; open readers go on reading it."""

    def touch(self) -> None:
        """Notes that the place is used now, once a minute at most; a read-only place is left as it is."""

    def used_at(self) -> float:
        """When the place was last used, in seconds since the epoch; 0 if that was never noted."""

    def sweep(self) -> None:
        """Removes what killed writers left behind, and the note of use if nothing else is here."""
