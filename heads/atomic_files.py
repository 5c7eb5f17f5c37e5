"""Files and folders that appear whole, by rename; what writers that were killed left half-made is removed by the next one."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
# A file is written in minutes at most: what another machine left half-made for so long was left by a killed writer.
STALE_SECONDS = 3600.0


@contextmanager
def appearing(dest: Path) -> Iterator[Path]:
    """A path at which to make a file or a folder in the block; after it, that takes the place of `dest`.

    If the block fails, nothing of it stays, and `dest` is as it was.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    sweep(dest.parent)
    folder, lock = _make(dest.parent)
    made, old = folder / "made" / dest.name, folder / "old"
    try:
        made.parent.mkdir()
        yield made
        # A folder is not renamed onto another one.
        if made.is_dir() and dest.exists():
            dest.rename(old)
        made.replace(dest)
    except BaseException:
        if old.exists() and not dest.exists():
            old.rename(dest)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path) -> None:
    """Remove what writers in a folder left half-made that were killed; those that live are left alone."""
    for left in folder.glob(f".*{PARTIAL}"):
        # Also where it is locked: its writer lives.
        with suppress(OSError):
            # Not every file system tells the locks of another machine.
            is_stale = time.time() - left.stat().st_mtime > STALE_SECONDS
            if is_stale or left.name.startswith(_prefix()):
                _remove_unlocked(left)


def _make(parent: Path) -> tuple[Path, int]:
    """A new folder for what is half-made, and its lock, which is held as long as this process lives and keeps it open."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), suffix=PARTIAL, dir=parent))
        # Another process may sweep it before it is locked.
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            # Where a file system has no locks, nobody sweeps either.
            with suppress(OSError):
                _lock(lock, wait=True)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    """Raises OSError if it is locked, or is no folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(lock, wait=False)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(number: int, *, wait: bool) -> None:
    # Not above: a consumer's system may lack it.
    import fcntl

    fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _prefix() -> str:
    # A letter that names of machines have not: one's name may begin another's.
    return f".{platform.node()}_"
