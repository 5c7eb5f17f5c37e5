"""The home folder of a local Ray head, with its sockets and logs; homes of dead heads are removed at the next start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from flows import environment, temporary_folders
from flows.cluster import processes
from flows.processes import lives, mark

PREFIX = "headstart-ray-"
# The longest path of a folder for temporary files: sockets lie in it, and a socket's path may have 107 bytes.
LONGEST_TEMPORARY = 70


def make() -> Path:
    """A new home, signed by this process, with a path short enough for Ray's sockets. Raises AskedWrongly if there is none."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=environment.ray_folder()))
    (home / temporary_folders.OWNER_FILE).write_text(f"{mark()} {_namespace()}")
    return home


def temporary(home: Path) -> Path | None:
    """The folder in a home for temporary files of the head's child processes; None if its path would be too long."""
    folder = home / "tmp"
    if len(str(folder)) > LONGEST_TEMPORARY:
        return None
    folder.mkdir(exist_ok=True)
    return folder


def sweep() -> list[Path]:
    """Remove the homes of this user in which no process lives and whose maker is dead, and return them."""
    inhabited = processes.marks()
    removed = []
    for home in environment.ray_folder().glob(f"{PREFIX}*"):
        if str(home) not in inhabited and _is_abandoned(home):
            shutil.rmtree(home, ignore_errors=True)
            removed.append(home)
    return removed


def _is_abandoned(home: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        maker, namespace = (home / temporary_folders.OWNER_FILE).read_text().split()
        # In another container that shares this folder there may be processes that we cannot see.
        return home.stat().st_uid == os.getuid() and namespace == _namespace() and not lives(maker)
    return False


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"
