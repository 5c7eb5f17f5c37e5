"""A node's copies of samples and masks by digest: one folder for all of its processes, bounded, never with half a file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pydantic import ByteSize, TypeAdapter, ValidationError

from flows.errors import AskedWrongly

# The variable of a node that bounds its folder; left out, it may take half of the disk's free room and its own.
LIMIT = "HEADSTART_CACHE_MAX_BYTES"
SHARE_OF_DISK = 0.5
# Copies are removed when so much of the room is taken, the least recently used first, until so much is.
HIGH_WATER, LOW_WATER = 0.90, 0.75
# A process reserves one part in this many of the free room at a time, and looks through the folder again when that is used up.
GRANTS = 16
# How long a process that found no room leaves the folder alone.
FULL_SECONDS = 30.0
TOUCH_SECONDS = 3600.0
STALE_SECONDS = 3600.0
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class CacheStatus:
    """What a node's folder of copies holds, and how much it may."""

    folder: str
    files: int
    bytes: int
    max_bytes: int


def cache_limit() -> int | None:
    """The limit of HEADSTART_CACHE_MAX_BYTES, None if it is not set. Raises AskedWrongly if it is no size."""
    text = os.environ.get(LIMIT) or None
    try:
        return None if text is None else int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise AskedWrongly(f"{LIMIT}={text}: no size; give bytes or such as 50GB, or unset it") from None


class NodeCache:
    """Copies of objects, shared by all processes of a node: each appears whole, and stays while a living process pins it."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder, self._max_bytes = folder, max_bytes
        self._objects, self._pins, self._partial = folder / "objects", folder / "pins", folder / "partial"
        self._lock, self._granted, self._full_until = Lock(), 0, 0.0

    def find(self, digest: str) -> Path | None:
        """The copy of a digest, which counts as a use of it; None if there is none."""
        path = self._at(digest)
        try:
            facts = path.stat()
        except OSError:
            return None
        # A file whose content was lost with the power is found empty.
        if not facts.st_size and digest != hashlib.md5(b"", usedforsecurity=False).hexdigest():
            return None
        if time.time() - facts.st_mtime > TOUCH_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return path

    def keep(self, digest: str, content: bytes) -> Path | None:
        """Make a copy of this content, and give its path; None if there is no room. Raises OSError if the disk refuses."""
        if not self._has_room(len(content)):
            return None
        goal, partial = self._at(digest), self._partial / secrets.token_hex(8)
        try:
            self._write(content, partial, goal)
        except FileNotFoundError:
            for folder in (goal.parent, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            self._write(content, partial, goal)
        return goal

    def _write(self, content: bytes, partial: Path, goal: Path) -> None:
        try:
            partial.write_bytes(content)
            partial.replace(goal)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def pin(self, digests: Sequence[str]) -> None:
        """Keep the copies of these digests, there or to come, as long as this process lives."""
        content = b"".join(bytes.fromhex(digest) for digest in sorted(set(digests)))
        file = self._pins / hashlib.md5(content, usedforsecurity=False).hexdigest()
        self._pins.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileNotFoundError):
                # Never closed: it is unlocked when the process ends.
                held = os.open(file, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(held), file.stat()):
                        return
                os.close(held)
            partial = self._pins / f".{secrets.token_hex(8)}"
            partial.write_bytes(content)
            partial.replace(file)

    def status(self) -> CacheStatus:
        """What the folder holds now."""
        sizes = [size for _, size, _ in self._copies()]
        return CacheStatus(str(self.folder), len(sizes), sum(sizes), self._most(sum(sizes)))

    def _at(self, digest: str) -> Path:
        return self._objects / digest[:2] / digest[2:]

    def _has_room(self, num_bytes: int) -> bool:
        with self._lock:
            if self._granted < num_bytes:
                if time.monotonic() < self._full_until:
                    return False
                room = self._clear(num_bytes)
                if room < num_bytes:
                    self._full_until = time.monotonic() + FULL_SECONDS
                    return False
                self._granted = max(num_bytes, room // GRANTS)
            self._granted -= num_bytes
            return True

    def _clear(self, num_bytes: int) -> int:
        """The bytes left below the high water mark, once the least recently used copies made room, if they had to."""
        copies = sorted(self._copies())
        total = sum(size for _, size, _ in copies)
        most = self._most(total)
        if total + num_bytes > HIGH_WATER * most:
            pinned = self._pinned()
            for _, size, path in copies:
                if total + num_bytes <= LOW_WATER * most:
                    break
                if bytes.fromhex(path.parent.name + path.name) not in pinned:
                    path.unlink(missing_ok=True)
                    total -= size
            self._sweep()
        return int(HIGH_WATER * most) - total

    def _most(self, total: int) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return int(SHARE_OF_DISK * (shutil.disk_usage(there).free + total))

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and path of each copy."""
        for folder in self._objects.glob("??"):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        facts = entry.stat()
                        yield facts.st_mtime, facts.st_size, Path(entry.path)

    def _pinned(self) -> set[bytes]:
        """The digests that living processes need; the lists of those that ended are removed."""
        pinned = set[bytes]()
        for file in self._pins.glob("[!.]*"):
            with suppress(FileNotFoundError), file.open("rb") as pins:
                try:
                    fcntl.flock(pins, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                except BlockingIOError:
                    content = pins.read()
                    pinned.update(content[at : at + _DIGEST_BYTES] for at in range(0, len(content), _DIGEST_BYTES))
        return pinned

    def _sweep(self) -> None:
        """Remove what killed writers left behind."""
        for file in (*self._partial.glob("*"), *self._pins.glob(".*")):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink()
