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
# A shard is named by a digest: a file of any other name is somebody else's.
SHARD = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")
PARTIAL = ".partial-"
USED = ".used"
# A shard is written in seconds; a partial file older than this was left by a writer that was killed.
STALE_SECONDS = 3600.0
TOUCH_SECONDS = 60.0


@dataclass(frozen=True)
class ShardFile:
    """A shard in a folder: its name, bytes, and when it was written (seconds since the epoch)."""

    name: str
    num_bytes: int
    written_at: float


class Opened:
    """A shard's file open for reading: readable also after it was removed, and in forked processes."""

    def __init__(self, path: Path) -> None:
        self._number = _open(path)
        self.close = weakref.finalize(self, os.close, self._number)
        self.num_bytes = os.fstat(self._number).st_size

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` with the bytes from `offset` on; False if the file ends before."""
        while buffer:
            num_read = os.preadv(self._number, [buffer], offset)
            if not num_read:
                return False
            buffer, offset = buffer[num_read:], offset + num_read
        return True


class ShardFolder:
    """A `heads.features.place.ShardPlace` that is a local folder."""

    # Threads overlap computing checksums and waiting for headers; not on all cores, which a training needs too.
    num_readers = min(4, os.cpu_count() or 1)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touched_at = -TOUCH_SECONDS

    def __str__(self) -> str:
        return str(self.path)

    def within(self, name: str) -> ShardFolder:
        """The folder of that name in this one, there or not."""
        return ShardFolder(self.path / name)

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

    def entries(self) -> list[ShardFile]:
        """The shards that lie here now, by name."""
        entries = []
        for entry in self._scan():
            # A shard that is removed meanwhile is not there.
            if SHARD.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    entries.append(ShardFile(entry.name, entry.stat().st_size, entry.stat().st_mtime))
        return sorted(entries, key=lambda entry: entry.name)

    def names(self, form: re.Pattern[str] = SHARD) -> list[str]:
        """The names of this form that lie here now, sorted, links aside; cheaper than `entries`."""
        return sorted(entry.name for entry in self._scan() if form.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError if it is gone."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> Opened:
        """A shard for reading. Raises FileNotFoundError if it is gone."""
        return Opened(self.path / name)

    def peek(self, name: str) -> Opened:
        """The same as `open`: no header is kept apart."""
        return self.open(name)

    def open_here(self, name: str) -> Opened:
        """The same as `open`: there are no copies."""
        return self.open(name)

    def forget(self, name: str) -> bool:
        """False: there are no copies."""
        return False

    def remove(self, name: str) -> None:
        """Removes a file, if it is there; open readers go on reading it."""
        (self.path / name).unlink(missing_ok=True)

    def touch(self) -> None:
        """Notes that the folder is used now, once a minute at most; a folder that is read-only is left as it is."""
        if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with suppress(OSError):
                (self.path / USED).touch()

    def used_at(self) -> float:
        """When the folder was last used, in seconds since the epoch; 0 if that was never noted."""
        try:
            return (self.path / USED).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def sweep(self) -> None:
        """Removes what killed writers left behind, and the folder itself if nothing else is in it."""
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
