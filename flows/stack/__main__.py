"""`python -m flows.stack`: serves the plans on its standard input until it is ended; `headstart up` starts and watches it.

A process of its own, so that what Prefect's client does while its server is away holds nothing else up.
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

from flows import owners, processes
from flows.stack.serving import ASKED_WRONGLY, RUN_SECONDS


def main() -> int:
    """The exit status: 2 where Prefect takes the cron for none."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    asked = json.load(sys.stdin)
    with owners.scratch("work") as folder:
        # Prefect keeps a folder there for each server of deployments, and leaves it where it is killed.
        tempfile.tempdir = str(folder)
        return _serve(asked)


def _end_with(parent: int) -> None:
    # Where `headstart up` is killed nobody looks after the runs any more, and none may be started.
    while os.getppid() == parent:
        time.sleep(1)
    processes.end(psutil.Process().children(recursive=True), RUN_SECONDS)
    os._exit(1)


def _serve(asked: dict[str, Any]) -> int:
    from flows import pipeline
    from flows.plan import parse_plan

    plans = [parse_plan(plan) for plan in asked["plans"]]
    try:
        served = [pair for plan in plans for pair in pipeline.deployments(plan, asked["cron"], asked["source"])]
    except ValueError as error:
        sys.stderr.write(f"Prefect does not take --cron {asked['cron']!r}: {error}\n")
        return ASKED_WRONGLY
    words = pipeline.how_to_start(plans, os.environ["PREFECT_API_URL"])
    pipeline.serve_deployments(served, lambda: sys.stderr.write(f"{words}\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
