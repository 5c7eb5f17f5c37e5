"""Shards in a local folder: files that appear whole by rename, and are read where they lie."""

from __future__ import annotations

import errno
import os
import re
import resource
import secrets
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heads.errors import HeadsError

SUFFIX = ".safetensors"
# A shard is named by a digest: whatever else lies beside it is a person's.
SHARD = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")
PARTIAL = ".partial-"
USED = ".used"
# A shard is written in seconds; what lies for longer was left by a writer that was killed.
STALE_SECONDS = 3600.0
TOUCH_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """A shard in a folder: its name, bytes, and when it was written (seconds since the epoch)."""

    name: str
    num_bytes: int
    written_at: float


class Opened:
    """A shard open for reading: it stays readable after it was removed, and in forked processes."""

    def __init__(self, path: Path) -> None:
        self._number = _open(path)
        self.close = weakref.finalize(self, os.close, self._number)
        self.num_bytes = os.fstat(self._number).st_size

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` with the bytes from `offset` on; False where the file ends before."""
        while buffer:
            num_read = os.preadv(self._number, [buffer], offset)
            if not num_read:
                return False
            buffer, offset = buffer[num_read:], offset + num_read
        return True


class Folder:
    """A folder of shards, in the words of `heads.features.place.Place`."""

    # Checksums are computed and headers awaited beside each other; a training needs the cores too.
    num_readers = min(4, os.cpu_count() or 1)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touched_at = -TOUCH_SECONDS

    def __str__(self) -> str:
        return str(self.path)

    def within(self, name: str) -> Folder:
        """The folder of that name in this one, there or not."""
        return Folder(self.path / name)

    def places(self) -> list[str]:
        """The names of the folders in this one, sorted; a link is none."""
        return sorted(entry.name for entry in self._scan() if entry.is_dir(follow_symlinks=False))

    def put(self, name: str, content: bytes) -> None:
        """Makes `content` appear under a name, whole by rename; what has that name already holds the same."""
        # A prune may remove an empty folder between its making and the writing.
        for last in (False, False, True):
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.path / f"{PARTIAL}{secrets.token_hex(8)}"
            try:
                partial.write_bytes(content)
                partial.replace(self.path / name)
                return
            except FileNotFoundError:
                if last:
                    raise
            finally:
                partial.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """The shards that lie here now, by name."""
        found = []
        for entry in self._scan():
            # One that is removed meanwhile is not there.
            if SHARD.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    found.append(Entry(entry.name, entry.stat().st_size, entry.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.name)

    def names(self, form: re.Pattern[str] = SHARD) -> list[str]:
        """The names of this form that lie here now, sorted, links aside; cheaper than `entries`."""
        return sorted(entry.name for entry in self._scan() if form.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError where it is gone."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> Opened:
        """A shard for reading. Raises FileNotFoundError where it is gone."""
        return Opened(self.path / name)

    def peek(self, name: str) -> Opened:
        """The same: nothing is kept nearer than the file itself."""
        return self.open(name)

    def open_here(self, name: str) -> Opened:
        """The same."""
        return self.open(name)

    def forget(self, name: str) -> bool:
        """False: no copies are kept."""
        return False

    def remove(self, name: str) -> None:
        """Removes a file, if it is there; who has it open goes on reading."""
        (self.path / name).unlink(missing_ok=True)

    def touch(self) -> None:
        """Notes that the folder is used now, once a minute at most; a folder that is read-only is left as it is."""
        if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with suppress(OSError):
                (self.path / USED).touch()

    def used_at(self) -> float:
        """When it was last used, in seconds since the epoch; 0 where that was never noted."""
        try:
            return (self.path / USED).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def sweep(self) -> None:
        """Removes what killed writers left behind, and the folder itself where nothing else is in it."""
        kept = False
        for entry in self._scan():
            with suppress(FileNotFoundError):
                if entry.name.startswith(PARTIAL) and time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    os.unlink(entry.path)
                    continue
            kept = kept or entry.name != USED
        if not kept:
            (self.path / USED).unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def _scan(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                return list(entries)
        except FileNotFoundError:
            return []


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # Every shard of an open reader is an open file; the soft limit is often 1024 where the hard one allows far more.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        raise HeadsError(f"{path} cannot be opened: this process has {soft} files open, its limit; raise it (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.open(path, os.O_RDONLY)
