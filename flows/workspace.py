"""The files of a workspace, by name and by digest, and the lock that its writers take."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.errors import Busy

DATA = "data"
STORAGE = ".headstart"


@contextmanager
def writing(workspace: Path) -> Iterator[Path]:
    """Hold the workspace's lock for the block, as its one writer, and give its storage folder; not to be nested.

    Raises Busy if another writer holds it. The lock dies with its process, so a killed writer leaves nothing behind.
    """
    storage = workspace / STORAGE
    storage.mkdir(parents=True, exist_ok=True)
    with (storage / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise Busy(
                f"another process ({lock.read().strip() or 'unknown'}) is writing the data of {workspace}; "
                "wait until it ends, then run this again"
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}")
        lock.flush()
        yield storage


def find(digest: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of a digest, from the first folder that has it; None if none has."""
    places = (folder / digest[:2] / digest[2:] for folder in folders)
    return next((place for place in places if place.is_file()), None)


def md5_of(path: Path) -> str:
    """The md5 of a file's bytes."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
