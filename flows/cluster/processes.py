"""The processes of a local cluster: found by a mark in their environment, ended by their pids, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import psutil

from flows.errors import AskedWrongly
from flows.processes import is_alive, wait

# Every process of a cluster inherits it, since all descend from the one that started the head.
MARK = "HEADSTART_CLUSTER"
# How the names of Ray's processes begin that overwrite their environment with a title.
RENAMED = ("ray-", "ray::")
GRACE_SECONDS = 1.0
KILL_SECONDS = 20.0

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError)


def members(mark: str, session: int | None = None) -> list[psutil.Process]:
    """The live processes whose environment carries this mark, and their descendants, without the asking process.

    Of `session`, the one in which the head was started, those too whose title has overwritten their environment: Ray's
    dashboard and workers are found so when those that started them are gone.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE):
            environment = process.environ()
            if environment.get(MARK) == mark:
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
            elif not environment and process.name().startswith(RENAMED) and os.getsid(process.pid) == session:
                found[process.pid] = process
    return [p for p in found.values() if p.pid != os.getpid() and is_alive(p)]


def marks() -> set[str]:
    """The marks of all clusters of which a process lives."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE):
            found.add(process.environ().get(MARK, ""))
    return found


def end(mark: str, session: int | None = None) -> None:
    """Ends all processes of this mark: asks, then kills, and returns when none is left, or none that can be killed."""
    known = {process.pid: process for process in members(mark, session)}
    for process in known.values():
        with contextlib.suppress(*_GONE):
            process.terminate()
    wait(list(known.values()), GRACE_SECONDS)
    end_at = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end_at:
        # Those of the first look too, whatever has become of their parents.
        known = {p.pid: p for p in (*known.values(), *members(mark, session)) if is_alive(p)}
        if not (left := list(known.values())):
            return
        for process in left:
            with contextlib.suppress(*_GONE):
                process.kill()
        wait(left, GRACE_SECONDS)


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback that nobody listens on. Raises AskedWrongly if there are none."""
    with contextlib.ExitStack() as stack:
        try:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
        except OSError as error:
            raise AskedWrongly(
                f"no {count} free ports on 127.0.0.1 for a local Ray ({error}): end programs that hold ports, or set "
                "HEADSTART_RAY_ADDRESS to the address of a running cluster (http://host:8265)"
            ) from error
        return [each.getsockname()[1] for each in sockets]


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What this machine, or the container around us, can still give."""
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is no limit
        used = int((cgroup / "memory.current").read_text())
        available = min(available, limit - used)
    return int(available)
