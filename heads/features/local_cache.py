"""Copies of an object store's shards on this machine, shared by its processes and kept between jobs."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from heads.cache_home import cache_home
from heads.errors import HeadsError
from heads.features.folder import PARTIAL, STALE_SECONDS, Opened

# The share of the disk's free space and present copies that copies may take.
SHARE_OF_DISK = 0.5
# A process reserves one part in this many of the free room at a time, and scans the folder again only when that is used up.
GRANTS = 16

Bring = Callable[[Path], None]


def cache_folder() -> Path:
    """The folder of this person's caches, one a store: `headstart/features` in XDG_CACHE_HOME, else in `~/.cache`.

    Raises HeadsError if it cannot be made.
    """
    try:
        folder = cache_home("features")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise HeadsError(f"there is no place for copies of features: {error}; name a folder in XDG_CACHE_HOME") from error
    return folder


class LocalCache:
    """A folder of copies. Each appears whole by rename and may be dropped at any time; open readers go on reading it."""

    def __init__(self, path: Path, budget: DiskBudget | None = None) -> None:
        self.path, self._budget = path, budget or DiskBudget(path.parent)

    def within(self, name: str) -> LocalCache:
        """The folder of that name in this one."""
        return LocalCache(self.path / name, self._budget)

    def open(self, name: str) -> Opened | None:
        """A copy for reading, which counts as a use of it; None if there is none."""
        try:
            opened = Opened(self.path / name)
        except FileNotFoundError:
            return None
        with suppress(OSError):
            os.utime(self.path / name)
        return opened

    def fetch(self, name: str, num_bytes: int, bring: Bring) -> Opened:
        """A copy that `bring` writes to the path it is given, in one process while others on this machine wait for it."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f"{PARTIAL}{name}"
        while True:
            with partial.open("ab") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                # A process that held the lock before has renamed or removed the file that this one has locked.
                holds = _is_at(held.fileno(), partial)
                if opened := self.open(name):
                    if holds:
                        partial.unlink(missing_ok=True)
                    return opened
                if holds:
                    return self._bring(name, num_bytes, bring, partial)

    def _bring(self, name: str, num_bytes: int, bring: Bring, partial: Path) -> Opened:
        try:
            self._budget.take(num_bytes)
            bring(partial)
            # Opened before the rename: from then on the copy may be removed to make room.
            opened = Opened(partial)
            partial.replace(self.path / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._budget.settle()
        return opened

    def borrow(self, num_bytes: int, bring: Bring) -> Opened:
        """A file that `bring` writes to the path it is given, for this reader alone: gone when it is closed."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._partial()
        try:
            self._budget.take(num_bytes)
            bring(partial)
            return Opened(partial)
        finally:
            partial.unlink(missing_ok=True)

    def keep(self, name: str, content: bytes) -> None:
        """Keeps `content` as a copy; if the disk does not take it, there is none."""
        partial = self._partial()
        with suppress(OSError):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._budget.take(len(content))
                partial.write_bytes(content)
                partial.replace(self.path / name)
            finally:
                partial.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """The content of a small copy, or None if there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """Drops a copy, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def _partial(self) -> Path:
        return self.path / f"{PARTIAL}{secrets.token_hex(8)}"


class DiskBudget:
    """Room that all copies below a folder share: half of theirs and the disk's free room; the least recently used make way."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._granted, self._is_scarce = path, Lock(), 0, False

    def take(self, num_bytes: int) -> None:
        """Reserves room for a copy, removing others if need be; a copy larger than all the room gets it nevertheless."""
        with self._lock:
            if self._granted < num_bytes:
                grant = self._clear(num_bytes) // GRANTS
                self._granted, self._is_scarce = max(num_bytes, grant), grant < num_bytes
            self._granted -= num_bytes

    def settle(self) -> None:
        """Clears again once a copy is written, if room is scarce: copies fetched at the same time counted on the same room."""
        with self._lock:
            if self._is_scarce:
                self._clear(0)

    def _clear(self, num_bytes: int) -> int:
        """The bytes left for copies, once the least recently used made room for `num_bytes` if they had to."""
        copies = sorted(self._copies())
        total = sum(size for _, size, _ in copies)
        most = int(SHARE_OF_DISK * (shutil.disk_usage(self._path).free + total))
        for _, size, path in copies:
            if total + num_bytes <= most:
                break
            path.unlink(missing_ok=True)
            total -= size
        return most - total

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and path of each copy; a partial file is one once its writer must have been killed."""
        for path in self._path.glob("*/*/*"):
            with suppress(FileNotFoundError):
                facts = path.stat()
                if not path.name.startswith(PARTIAL) or time.time() - facts.st_mtime > STALE_SECONDS:
                    yield facts.st_mtime, facts.st_size, path


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
