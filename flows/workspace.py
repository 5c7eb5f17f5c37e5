"""Where things lie in a workspace, and the lock that its writers take."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.errors import Busy

DATA = "data"
STORAGE = ".headstart"


@contextmanager
def writing(workspace: Path) -> Iterator[Path]:
    """The workspace's storage folder, held for one writer until the block ends; not to be nested.

    Raises Busy when another writer holds it. The lock dies with its process, so a killed writer leaves nothing behind.
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
