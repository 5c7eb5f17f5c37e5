"""What a retraining costs beside its training: one frozen variant, from the command to the verdict, on this machine.

    python tests/benchmarks/start_up.py [--data hymenoptera] [--runs 2] [--before DIR] [--folder DIR]

Three retrainings in a new workspace, each by the command:
- cold: nothing runs yet, so that Prefect's server and Ray are started for it;
- beside `headstart up`: another rate, and so another variant, while its servers run;
- done: the first plan again, of which nothing is left to do.
The fixed cost is the wall time less `seconds.train`, the time from the first image to the last result. Bars, on two cores that
do nothing else: 35 s cold, 20 s beside `up`, 8 s when all is done. Of the cold one a table tells where the processor's time goes:
seconds of each kind of process that the command started. `--before` names the root of another installation (a checkout with its
`.venv`), which is measured beside this one, run by run. The best of the runs counts, since whatever else the machine does only
adds. A summary in JSON stands in the last line. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from workspaces import ROOT, SHARED, Workspace, say

WEIGHTS = SHARED / "weights" / "squeezenet1_1_from_fp16-aec6cba8.pth"
BARS = {"cold": 35.0, "beside up": 20.0, "done": 8.0}
MARK, LOOK_SECONDS = "START_UP_RUN", 0.3
# What a command line holds, and what such a process is, the first that fits.
KINDS = (
    ("jobs/train-", "the driver"),
    ("jobs/waiting-", "the driver"),
    ("jobs/score-", "a driver of the scoring alone"),
    ("ray::RayTrainWorker", "the workers"),
    ("ray::JobSupervisor", "Ray's supervisor of the job"),
    ("ray::Dashboard", "Ray's own processes"),
    ("ray::", "Ray Train's controller and its actors"),
    ("uvicorn", "Prefect's server"),
    ("prefect server", "Prefect's server"),
    ("ray/", "Ray's own processes"),
    ("ray.", "Ray's own processes"),
    ("ray-dashboard", "Ray's own processes"),
    ("headstart retrain", "the command, with the flow"),
)


class Meter:
    """Sums the processor's seconds of the processes that carry a mark in their environment, by kind, while they live."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._seconds: dict[tuple[int, float], tuple[str, float]] = {}
        self._others = set[tuple[int, float]]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look again and again while the block runs."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                self._look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        for process in psutil.process_iter():
            try:
                identity = process.pid, process.create_time()
                if identity in self._others:
                    continue
                if identity not in self._seconds and process.environ().get(MARK) != self._mark:
                    self._others.add(identity)
                    continue
                times, words = process.cpu_times(), process.cmdline()
                # One that has just ended has no command line any more.
                kind = _kind_of(" ".join(words)) if words else self._seconds.get(identity, ("others",))[0]
                self._seconds[identity] = kind, times.user + times.system
            except (psutil.Error, OSError):
                continue

    def by_kind(self) -> dict[str, float]:
        """The seconds of each kind, the most first."""
        sums: dict[str, float] = {}
        for kind, seconds in self._seconds.values():
            sums[kind] = sums.get(kind, 0.0) + seconds
        return {kind: round(seconds, 1) for kind, seconds in sorted(sums.items(), key=lambda one: -one[1])}


def _kind_of(line: str) -> str:
    return next((kind for part, kind in KINDS if part in line), "others")


def measure(command: Path, source: Path, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The fixed cost of each retraining by a command, and of the cold one the processor's seconds by kind of process."""
    place = Workspace(folder / "workspace", source, command=command)
    first, second = (_plan(rate) for rate in (0.003, 0.001))
    meter, place.env[MARK] = Meter(folder.name), folder.name
    with meter.running():
        fixed = {"cold": _fixed(place, first)}
    del place.env[MARK]
    fixed["done"] = _fixed(place, first)
    with _up(place, first, folder):
        fixed["beside up"] = _fixed(place, second)
    return fixed, meter.by_kind()


def _plan(rate: float) -> dict[str, Any]:
    fit = {"epochs": 5, "learning_rate": rate}
    return {"name": "start", "backbones": ["squeezenet1_1"], "weights": str(WEIGHTS), "freeze": ["all"], "fit": fit}


def _fixed(place: Workspace, plan: dict[str, Any]) -> float:
    file, began = place.write(plan), time.monotonic()
    report = json.loads(place.run("retrain", str(file), "--json"))
    return round(time.monotonic() - began - float(report["seconds"].get("train", 0.0)), 1)


@contextmanager
def _up(place: Workspace, plan: dict[str, Any], folder: Path) -> Iterator[None]:
    output, errors = folder / "up.out", folder / "up.err"
    served = place.start("up", str(place.write(plan)), output=output, errors=errors)
    try:
        deadline = time.monotonic() + 180
        while "Nights" not in output.read_text() + errors.read_text():
            if time.monotonic() > deadline or served.poll() is not None:
                raise SystemExit(f"headstart up does not serve:\n{errors.read_text()[-4000:]}")
            time.sleep(0.5)
        # What starts along with it is to be at rest.
        time.sleep(10)
        yield
    finally:
        served.send_signal(signal.SIGINT)
        served.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="hymenoptera")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    roots = {"before": asked.before, "now": ROOT} if asked.before else {"now": ROOT}
    best: dict[str, dict[str, float]] = {name: {} for name in roots}
    tables: dict[str, dict[str, float]] = {}
    for _ in range(asked.runs):
        for name, root in roots.items():
            with tempfile.TemporaryDirectory(prefix="headstart-start-", dir=asked.folder, ignore_cleanup_errors=True) as folder:
                fixed, table = measure(root / ".venv" / "bin" / "headstart", SHARED / "data" / asked.data, Path(folder))
            if fixed["cold"] <= best[name].get("cold", fixed["cold"]):
                tables[name] = table
            best[name] = {part: min(seconds, best[name].get(part, seconds)) for part, seconds in fixed.items()}
            say(f"{name}: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in fixed.items()))
    return _tell(best, tables)


def _tell(best: dict[str, dict[str, float]], tables: dict[str, dict[str, float]]) -> int:
    kinds = dict.fromkeys(kind for table in tables.values() for kind in table)
    say("\n| processor's seconds of the cold one | " + " | ".join(tables) + " |")
    say("| --- |" + " --- |" * len(tables))
    for kind in kinds:
        say(f"| {kind} | " + " | ".join(f"{table.get(kind, 0.0):.1f}" for table in tables.values()) + " |")
    say("| all | " + " | ".join(f"{sum(table.values()):.1f}" for table in tables.values()) + " |\n")
    missed = [part for part, bar in BARS.items() if best["now"][part] > bar]
    summary: dict[str, Any] = {"fixed_seconds": best, "processor_seconds": tables, "missed": missed}
    say(json.dumps(summary))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
