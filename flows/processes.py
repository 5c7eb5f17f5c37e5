"""Marks by which a process is known again, never mistaken for a later one of the same pid; and ending processes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def mark(pid: int | None = None) -> str:
    """The mark `pid:start time` of a process, which no other one ever has; of this process if no pid is given."""
    process = psutil.Process(pid)
    return f"{process.pid}:{process.create_time():.2f}"


def lives(mark: str) -> bool:
    """Whether the process of a mark is alive, or, if the mark has no start time, any of that pid; a zombie is not."""
    pid, _, created = mark.partition(":")
    try:
        process = psutil.Process(int(pid))
        return is_alive(process) and (not created or abs(process.create_time() - float(created)) < 1)
    except (psutil.Error, ValueError):
        return False


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie is dead, only its parent has not looked yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, OSError):
        return False


def wait(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Whether all of these processes end within so many seconds. (`psutil.wait_procs` waits for zombies, too.)"""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Ask these processes to end; after so many seconds kill them, and wait as long again at most."""
    for sign in ("terminate", "kill"):
        for process in processes:
            try:
                getattr(process, sign)()
            except psutil.Error:
                continue
        if wait(processes, seconds):
            return
