"""The folder of a local Ray head, where its sockets and logs lie; one that nobody lives in any more goes with the next start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from flows import owners, surroundings
from flows.cluster import processes
from flows.processes import lives, mark

PREFIX = "headstart-ray-"
# The longest that a folder for temporary files may be: sockets lie in it, and a socket's path may have 107 characters.
LONGEST_TEMPORARY = 70


def make() -> Path:
    """A new home, signed by this process, where the paths of Ray's sockets fit. Raises AskedWrongly if none can be."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=surroundings.ray_folder()))
    (home / owners.OWNER_FILE).write_text(f"{mark()} {_namespace()}")
    return home


def temporary(home: Path) -> Path | None:
    """The folder in a home for the temporary files of the head's descendants, which ends with it; None if it is too long."""
    folder = home / "tmp"
    if len(str(folder)) > LONGEST_TEMPORARY:
        return None
    folder.mkdir(exist_ok=True)
    return folder


def sweep() -> list[Path]:
    """The homes beside a new one in which no process lives and whose maker is dead, removed now; nobody else's."""
    inhabited = processes.marks()
    found = []
    for home in surroundings.ray_folder().glob(f"{PREFIX}*"):
        if str(home) not in inhabited and _is_abandoned(home):
            shutil.rmtree(home, ignore_errors=True)
            found.append(home)
    return found


def _is_abandoned(home: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        maker, namespace = (home / owners.OWNER_FILE).read_text().split()
        # Another container that shares this folder has processes that are not seen from here.
        return home.stat().st_uid == os.getuid() and namespace == _namespace() and not lives(maker)
    return False


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"
