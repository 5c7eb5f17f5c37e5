"""`headstart up` as a service: nights that start by themselves, and what is killed on purpose: a server, a run, everything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.conftest import Workspace, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PLAN = """
name: night
backbones: [shufflenet_v2_x1_0]
weights: none
heads: [linear]
freeze: [none]
fit: {epochs: %d, batch_size: 64, learning_rate: 0.003, image_size_px: 32}
workers: {count: 1}
"""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Up:
    """A running `headstart up` with a cron of one minute, its words, and the runs in its database."""

    def __init__(self, workspace: Workspace, epochs: int) -> None:
        self.storage, self.begun = workspace.storage, time.monotonic()
        (workspace.folder / "night.yaml").write_text(PLAN % epochs)
        output = workspace.folder.parent / "output.log"
        self._output, self._from = output, output.stat().st_size if output.exists() else 0
        self.process = workspace.start("up", "night.yaml", "--cron", "* * * * *")

    @property
    def words(self) -> str:
        """What it has said so far."""
        return self._output.read_text(errors="replace")[self._from :]

    def says(self, words: str, seconds: float) -> None:
        """Return once it has said these words."""

        def found() -> bool:
            assert self.process.poll() is None, self.words[-3000:]
            return words in self.words

        wait_for(f"{words!r} said", found, seconds)

    def runs(self) -> dict[str, str]:
        """The states of the runs that have begun, by id, oldest first."""
        with sqlite3.connect(self.storage / "prefect" / "prefect.db", timeout=30) as database:
            query = "select id, state_type from flow_run where state_type != 'SCHEDULED' order by expected_start_time"
            return dict(database.execute(query).fetchall())

    def record(self) -> dict[str, Any]:
        """What it wrote down about itself."""
        told: dict[str, Any] = json.loads((self.storage / "stack.json").read_text())
        return told

    def server(self, name: str) -> psutil.Process:
        """The process of one of its servers."""
        return next(p for p in psutil.Process(self.process.pid).children() if name in p.cmdline())

    def wait_for_training(self) -> None:
        """Return once a Ray job of it is at its epochs."""
        before = {file: file.stat().st_mtime for file in self.storage.glob("jobs/train-*/span.json")}
        wait_for("a training", lambda: _spans(self.storage) != before, 200)

    def interrupt(self) -> float:
        """The seconds that it takes to end well after Ctrl-C."""
        start = time.monotonic()
        os.kill(self.process.pid, signal.SIGINT)
        assert self.process.wait(90) == 0, self.words[-3000:]
        return time.monotonic() - start


def _spans(storage: Path) -> dict[Path, float]:
    return {file: file.stat().st_mtime for file in storage.glob("jobs/train-*/span.json")}


def _kill_everything(up: Up) -> None:
    """Kill with -9 all that descends from it, and its Ray head, at once; nothing where it has ended."""
    if up.process.poll() is not None:
        return
    session = json.loads((up.storage / "ray" / "cluster.json").read_text())["session"]
    victims = psutil.Process(up.process.pid).children(recursive=True)
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            victims += [process] if os.getsid(process.pid) == session else []
    up.process.kill()
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    up.process.wait()


@pytest.fixture(scope="module")
def temporary(digits: Workspace) -> Iterator[Path]:
    """The folder of temporary files of all that is started here; its path is short, since Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="hs-", dir="/tmp") as folder:
        digits.env["TMPDIR"] = folder
        yield Path(folder)
        del digits.env["TMPDIR"]


@pytest.fixture(scope="module")
def night(digits: Workspace, temporary: Path) -> Iterator[Up]:
    up = Up(digits, epochs=1)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.interrupt()


def _is_done(up: Up) -> bool:
    return "COMPLETED" in up.runs().values()


def test_a_night_starts_by_itself_and_for_two_minutes_no_server_logs_an_error(night: Up) -> None:
    night.says("Beginning flow run", 150)
    wait_for("the end of the first night", lambda: _is_done(night), 240)
    time.sleep(max(0.0, night.begun + 120 - time.monotonic()))
    logs = sorted((night.storage / "logs").glob("*.log"))
    assert [log.name for log in logs] == ["mlflow.log", "prefect.log"]
    for log in logs:
        bad = [line for line in log.read_text().splitlines() if re.search("Traceback|ERROR|CRITICAL", line)]
        assert bad == [], f"{log.name} holds {bad[:5]}"
    assert "met an error" not in night.words


def test_a_killed_server_is_started_again_where_it_was_and_said_so(night: Up, digits: Workspace) -> None:
    address = night.record()["prefect_address"]
    for name, title in (("prefect", "Prefect"), ("mlflow", "MLflow")):
        night.server(name).kill()
        night.says(f"{title} died (killed by SIGKILL", 15)
        night.says(f"{title} is there again", 90)
    assert night.record()["prefect_address"] == address
    # What is advised beside it holds: a second one is refused, and a retraining finds its servers.
    digits.run("up", "night.yaml", status=2)
    assert digits.json("retrain", "night.yaml")["counts"]["variants_trained"] == 0


def test_a_killed_worker_costs_one_line_and_ctrl_c_during_a_run_is_quick_and_leaves_nothing(
    night: Up, digits: Workspace, temporary: Path
) -> None:
    night.interrupt()
    assert _left(temporary) == []
    up = Up(digits, epochs=2000)
    try:
        up.wait_for_training()
        wait_for("five epochs", lambda: max(_epochs(up.storage)) >= 5, 120)
        _worker(up.storage).kill()
        # On the command's output, which holds the run's log too.
        up.says("s lost", 120)
        (line,) = (line for line in up.words.splitlines() if "s lost" in line)
        assert re.search(r"A worker died in epoch \d+ of .*; goes on from epoch \d+'s checkpoint: \d+ s lost", line), line
        family = psutil.Process(up.process.pid).children(recursive=True)
        # The one at work, and the one of a later minute that waits for it where this took longer than a minute.
        at_work = [run for run, state in up.runs().items() if state == "RUNNING"]
        assert up.interrupt() < 45
        assert re.search(r"Ending \d runs? first; what they have trained is kept", up.words)
        assert set(up.runs().values()) <= set(ENDED)
        assert {up.runs()[run] for run in at_work} == {"CRASHED"}
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finally:
        _kill_everything(up)
    assert _running_in_mlflow(digits.storage) == 0
    assert not (digits.storage / "stack.json").exists()
    assert not (digits.storage / "ray" / "cluster.json").exists()
    assert _left(temporary) == []


def test_after_everything_was_killed_the_next_start_ends_what_nobody_runs_and_the_nights_go_on(
    digits: Workspace, temporary: Path
) -> None:
    first = Up(digits, epochs=2000)
    try:
        first.wait_for_training()
        address = first.record()["prefect_address"]
    finally:
        _kill_everything(first)
    before = first.runs()
    dead = [run for run, state in before.items() if state == "RUNNING"]
    assert dead, before
    assert _running_in_mlflow(digits.storage) > 0
    second = Up(digits, epochs=1)
    try:
        second.says("said Running and nobody runs it any more: Crashed now", 120)
        assert "A retraining of night was killed" in second.words
        wait_for("the end of all that was killed", lambda: {second.runs()[run] for run in dead} == {"CRASHED"}, 60)
        # Another stack of this test run may hold the usual port; then any free one is right.
        if address.endswith(":4200/api"):
            assert second.record()["prefect_address"] == address, "the ports of a killed stack are free again"
        # Not the last one: where a night takes longer than its minute, another one has begun.
        wait_for("the next night", lambda: "COMPLETED" in (second.runs()[run] for run in second.runs().keys() - before), 300)
        assert second.interrupt() < 45
    finally:
        _kill_everything(second)
    assert _running_in_mlflow(digits.storage) == 0
    assert _left(temporary) == [], "what the killed ones had left is gone too"


def _epochs(storage: Path) -> list[int]:
    """How many epochs each work has behind it."""
    return [len(json.loads(file.read_text())["epochs"]) for file in storage.glob("work/*/progress.json")] or [0]


def _left(folder: Path) -> list[str]:
    """What lies in a folder of temporary files, but for what torch keeps there by its user's name."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_"))


def _worker(storage: Path) -> psutil.Process:
    """A worker of the training that the storage's Ray is at."""
    session = json.loads((storage / "ray" / "cluster.json").read_text())["session"]
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.cmdline()[0].startswith("ray::RayTrainWorker"):
                return process
    raise AssertionError("no worker is at work")


def _running_in_mlflow(storage: Path) -> int:
    with sqlite3.connect(storage / "mlflow.db", timeout=30) as database:
        return int(database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0])
