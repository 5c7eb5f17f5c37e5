"""The process that serves the plans (`flows.stack.__main__`) and its flow runs: starting and ending them."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Sequence

import psutil

from flows import processes, temporary_folders
from flows.plan import Plan
from flows.settings import Settings, child_environment
from flows.stack.servers import Program
from flows.words import Say, counted

ASKED_WRONGLY = 2
# A run that is asked to end stops its Ray job first, and waits until Ray confirms that.
RUN_SECONDS = 25.0


def program(settings: Settings, plans: Sequence[Plan], cron: str, source: str | None) -> Program:
    """The program that serves these plans."""
    request = {"plans": [plan.model_dump(mode="json") for plan in plans], "cron": cron, "source": source}
    return Program("Serving", ["flows.stack"], child_environment(settings), stdin=json.dumps(request).encode())


def runs(served: Program) -> list[psutil.Process]:
    """The processes of the flow runs that it started and that still run."""
    flow_runs = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(served.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                flow_runs += [process] if "prefect.engine" in process.cmdline() else []
    return flow_runs


def stop(served: Program, say: Say) -> None:
    """End the runs as a cancellation does, each with its Ray job and its MLflow runs, and then the process that served them."""
    if served.process is None:
        return
    if at_work := runs(served):
        say(f"Ending {counted(len(at_work), 'run')} first; what they have trained is kept")
    if served.status() is None:
        # Stopped, not ended: it starts no more runs, but still holds the pipes that the runs write to.
        served.process.send_signal(signal.SIGSTOP)
    processes.end(at_work, RUN_SECONDS)
    served.stop(0)
    temporary_folders.sweep()
