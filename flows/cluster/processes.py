"""The processes of a local cluster, found by a mark in their environment, so that no others are ended."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import psutil

from flows.errors import AskedWrongly
from flows.processes import is_alive, wait

# The variable with the mark. All processes of a cluster inherit it from the one that started the head.
MARK = "HEADSTART_CLUSTER"
# Ray's processes with these prefixes set a title, which overwrites their environment.
RENAMED = ("ray-", "ray::")
GRACE_SECONDS = 1.0
KILL_SECONDS = 20.0

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError)


def members(mark: str, session: int | None = None) -> list[psutil.Process]:
    """The live processes with this mark in their environment, and their descendants, without the calling process.

    Processes whose title has overwritten their environment are found by `session`, in which the head was started: Ray's
    dashboard and workers, once their parents are gone.
    """
    found: dict[int, psutil.Process] = {}
    others: list[tuple[psutil.Process, int]] = []
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE):
            environment = process.environ()
            is_renamed = not environment and process.name().startswith(RENAMED)
            if environment.get(MARK) == mark or (is_renamed and os.getsid(process.pid) == session):
                found[process.pid] = process
            else:
                others.append((process, process.ppid()))
    while children := {process.pid: process for process, parent in others if parent in found and process.pid not in found}:
        found |= children
    return [p for p in found.values() if p.pid != os.getpid() and is_alive(p)]


def marks() -> set[str]:
    """The marks of all clusters with a living process."""
    living = set()
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE):
            living.add(process.environ().get(MARK, ""))
    return living


def end(mark: str, session: int | None = None) -> None:
    """End all processes with this mark: terminate, then kill them, until none is left, for KILL_SECONDS at most."""
    known = {process.pid: process for process in members(mark, session)}
    for process in known.values():
        with contextlib.suppress(*_GONE):
            process.terminate()
    wait(list(known.values()), GRACE_SECONDS)
    end_at = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end_at:
        # With those of the first look, which may not be found again once their parents are gone.
        known = {p.pid: p for p in (*known.values(), *members(mark, session)) if is_alive(p)}
        if not (left := list(known.values())):
            return
        for process in left:
            with contextlib.suppress(*_GONE):
                process.kill()
        wait(left, GRACE_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that nobody listens on. Raises AskedWrongly if there are not so many."""
    with contextlib.ExitStack() as stack:
        try:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
        except OSError as error:
            raise AskedWrongly(
                f"no {count} free ports on 127.0.0.1 for a local Ray ({error}): end programs that hold ports, or set "
                "HEADSTART_RAY_ADDRESS to the address of a running cluster (http://host:8265)"
            ) from error
        return [one.getsockname()[1] for one in sockets]


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that this machine, or the container around us, has left."""
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is no limit
        used = int((cgroup / "memory.current").read_text())
        available = min(available, limit - used)
    return int(available)
