"""Processes that are written down and found again, and how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from flows import processes
from flows.cluster import head


def test_a_mark_is_of_one_process_and_not_of_a_later_one_of_its_pid() -> None:
    assert processes.lives(processes.mark())
    assert not processes.lives(f"{os.getpid()}:12345.0")
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = processes.mark(gone.pid)
    assert processes.lives(mark)
    gone.kill()
    # Not waited for: a zombie is no living process.
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.lives(mark)
    gone.communicate()


def test_who_used_a_ray_head_is_found_in_records_of_earlier_versions_too() -> None:
    me, gone = psutil.Process(), {"pid": os.getpid(), "created": 12345.0}
    kept = {"users": [processes.mark(), {"pid": me.pid, "created": me.create_time()}, gone, f"{me.pid}:12345.00"]}
    found = head._users(kept)
    assert len(found) == 2
    assert all(map(processes.lives, found))


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def test_who_does_not_end_when_asked_is_killed_and_who_does_is_not_waited_for() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as deaf,
        subprocess.Popen(["sleep", "60"]) as kind,
    ):
        assert deaf.stdout is not None
        deaf.stdout.readline()
        begun = time.monotonic()
        processes.end([psutil.Process(kind.pid)], 30)
        assert time.monotonic() - begun < 10
        processes.end([psutil.Process(deaf.pid)], 0.5)
        assert (kind.wait(5), deaf.wait(5)) == (-signal.SIGTERM, -signal.SIGKILL)
