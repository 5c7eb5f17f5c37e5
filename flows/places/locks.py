"""Locks by name that a kill frees: of a folder by the system, in a bucket by leases (`flows.places.leases`)."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import IO, Protocol

from flows.places.folder import Folder
from flows.places.leases import Leases
from flows.places.place import Held, Lock, Place, acquire

__all__ = ["FolderLocks", "Held", "Lock", "Locks", "locks_of"]

OnWait = Callable[[str], None]


class Locks(Protocol):
    """The locks of a place."""

    def hold(
        self,
        name: str,
        holder: str = "",
        *,
        wait_seconds: float = math.inf,
        every_seconds: float = 0.1,
        on_wait: OnWait | None = None,
    ) -> AbstractContextManager[Lock]:
        """Hold a lock for the block; `holder` tells others, in words, who does.

        `on_wait` gets the words of who holds it now, once. Raises Held, of those words, if it is not free after `wait_seconds`.
        """

    def holders(self) -> Mapping[str, str]:
        """The words of each lock's living holder, by its name."""

    def take_abandoned(self) -> Iterator[str]:
        """The names of locks whose holders were killed, each held while it is looked at, and free afterwards."""


def locks_of(place: Place) -> Locks:
    """The locks of a place."""
    return FolderLocks(place.path) if isinstance(place, Folder) else Leases(place)


class SystemLock:
    """A lock of the system: its holder keeps it until it ends."""

    def check(self) -> None:
        """Nothing: it cannot be lost."""


@dataclass(frozen=True)
class FolderLocks:
    """One file for each lock, with the words of its holder; words in a file that nobody has locked are those of a killed one."""

    path: Path

    @contextmanager
    def hold(
        self,
        name: str,
        holder: str = "",
        *,
        wait_seconds: float = math.inf,
        every_seconds: float = 0.1,
        on_wait: OnWait | None = None,
    ) -> Iterator[Lock]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a+") as file:
            lock = acquire(partial(_try, file), wait_seconds, repeat(every_seconds), on_wait)
            file.truncate(0)
            file.write(holder)
            file.flush()
            try:
                yield lock
            finally:
                file.truncate(0)

    def holders(self) -> Mapping[str, str]:
        found = {}
        for path in sorted(self.path.glob("*")):
            with path.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found[path.name] = file.read().strip() or "unknown"
        return found

    def take_abandoned(self) -> Iterator[str]:
        for path in sorted(self.path.glob("*")):
            with path.open("r+") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if file.read().strip():
                    yield path.name
                    os.ftruncate(file.fileno(), 0)


def _try(file: IO[str]) -> SystemLock | str:
    """The file's lock, or the words of who holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return SystemLock()
    except OSError:
        file.seek(0)
        return file.read().strip() or "unknown"
