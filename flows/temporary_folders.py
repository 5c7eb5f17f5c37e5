"""Temporary folders that are removed with the process that owns them, or, if it was killed, by the next one."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flows.processes import mark

PREFIX = "headstart-"
# Kinds of folders that `scratch` makes: `headstart-<kind>-<random>`, where the system keeps temporary files.
KINDS = ("work", "predict", "publish", "copies")
OWNER_FILE = ".headstart-owner"


@contextlib.contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A temporary folder for the block, locked as long as its owner lives; if that is killed, the next `sweep` removes it."""
    folder, lock = _make(kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def temporaries(kind: str) -> Iterator[Path]:
    """A `scratch` folder for the block, in which all libraries make their temporary files (TMPDIR)."""
    with scratch(kind) as folder:
        before = os.environ.get("TMPDIR"), tempfile.tempdir
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before[1]
            os.environ.pop("TMPDIR")
            os.environ |= {} if before[0] is None else {"TMPDIR": before[0]}


def of_this_process(kind: str) -> Path:
    """A temporary folder until this process ends; if it is killed, the next `sweep` removes it."""
    folder, _ = _make(kind)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _make(kind: str) -> tuple[Path, int]:
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Signed only once it is locked: `sweep` leaves unsigned folders alone.
    (folder / OWNER_FILE).write_text(mark())
    return folder, lock


def sweep(root: Path | None = None) -> list[Path]:
    """Remove the folders of `scratch` whose owners are dead, and return them; those of others or other programs stay."""
    removed = []
    for kind in KINDS:
        for folder in (root or Path(tempfile.gettempdir())).glob(f"{PREFIX}{kind}-*"):
            with contextlib.suppress(OSError), _abandoned(folder):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for the block. Raises OSError if its owner lives, or it is not ours."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid() or not (folder / OWNER_FILE).is_file():
            raise PermissionError(f"{folder} is no folder of ours")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
