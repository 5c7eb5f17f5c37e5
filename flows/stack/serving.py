"""The process that serves the plans (`flows.stack.__main__`), its runs, and how both end."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Sequence

import psutil

from flows import owners, processes
from flows.plan import Plan
from flows.settings import Settings, child_environment
from flows.stack.servers import Program
from flows.words import counted

ASKED_WRONGLY = 2
# A run that is told to end stops its Ray job first, and waits until Ray confirms it.
RUN_SECONDS = 25.0


def program(settings: Settings, plans: Sequence[Plan], cron: str, source: str | None) -> Program:
    """The program that serves these plans."""
    asked = {"plans": [plan.model_dump(mode="json") for plan in plans], "cron": cron, "source": source}
    return Program("Serving", ["flows.stack"], child_environment(settings), stdin=json.dumps(asked).encode())


def runs(served: Program) -> list[psutil.Process]:
    """The processes of the flow runs that are at work."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(served.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [process] if "prefect.engine" in process.cmdline() else []
    return found


def stop(served: Program, say: Callable[[str], None]) -> None:
    """End the runs as a cancellation does, each with its Ray job and its MLflow runs, and then what served them."""
    if served.process is None:
        return
    if at_work := runs(served):
        say(f"Ending {counted(len(at_work), 'run')} first; what they have trained is kept")
    if served.status() is None:
        # It still holds what the runs write to, and starts no other one.
        served.process.send_signal(signal.SIGSTOP)
    processes.end(at_work, RUN_SECONDS)
    served.stop(0)
    owners.sweep()
