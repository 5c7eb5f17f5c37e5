"""`python -m flows.stack`: serves the plans on its standard input until it is ended; `headstart up` starts and watches it.

A process of its own, so that whatever Prefect's client does while its server is away holds up nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from typing import Any

import psutil

from flows import processes, temporary_folders
from flows.stack.serving import ASKED_WRONGLY, RUN_SECONDS


def main() -> int:
    """Serve until ended; the exit status is 2 if Prefect refuses the cron."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    request = json.load(sys.stdin)
    with temporary_folders.scratch("work") as folder:
        # Prefect makes a temporary folder for the deployments it serves, and leaves it behind if it is killed.
        tempfile.tempdir = str(folder)
        return _serve(request)


def _end_with(parent: int) -> None:
    # Once `headstart up` is killed nobody looks after the runs any more, and none may be started.
    while os.getppid() == parent:
        time.sleep(1)
    processes.end(psutil.Process().children(recursive=True), RUN_SECONDS)
    os._exit(1)


def _serve(request: dict[str, Any]) -> int:
    from flows import deployments
    from flows.plan import parse_plan

    plans = [parse_plan(plan) for plan in request["plans"]]
    try:
        served = [each for plan in plans for each in deployments.of_plan(plan, request["cron"], request["source"])]
    except ValueError as error:
        sys.stderr.write(f"Prefect does not take --cron {request['cron']!r}: {error}\n")
        return ASKED_WRONGLY
    if asleep := deployments.keep_pauses(served):
        sys.stderr.write(f"Paused in Prefect, and left so: {', '.join(asleep)}; resume what is to run again there\n")
    words = deployments.how_to_start(plans, os.environ["PREFECT_API_URL"])
    deployments.serve(served, lambda: sys.stderr.write(f"{words}\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
