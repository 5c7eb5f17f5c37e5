"""`headstart up`: a run by hand through Prefect's API, a cancelled one, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.conftest import Workspace, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PLAN = """
name: hand
backbones: [shufflenet_v2_x1_0]
weights: none
heads: [linear]
freeze: [none]
fit: {epochs: 2, batch_size: 64, learning_rate: 0.003, image_size_px: 32}
workers: {count: 1}
"""


class Stack:
    """A running stack, spoken to through Prefect's API."""

    def __init__(self, workspace: Workspace, pid: int) -> None:
        self.workspace, self.pid = workspace, pid
        self.api = json.loads((workspace.storage / "stack.json").read_text())["prefect_address"]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, {"Content-Type": "application/json"})
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                # A server whose SQLite is busy asks to be asked again, as Prefect's own client does.
                if error.code != 503:
                    raise
                time.sleep(1)
        raise AssertionError(f"{path}: Prefect was busy ten times")

    def trigger(self, **changes: Any) -> str:
        """The id of a new run of the on-demand deployment, with these fields of the plan changed."""
        deployment = self.ask("/deployments/name/hand/on-demand")
        plan = deployment["parameters"]["plan"] | changes
        return str(self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"plan": plan}})["id"])

    def state(self, run: str) -> str:
        """The name of the run's state."""
        return str(self.ask(f"/flow_runs/{run}")["state"]["name"])

    def artifacts(self, run: str) -> dict[str, Any]:
        """The run's artifacts by key."""
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: artifact["data"] for artifact in found}


@pytest.fixture(scope="module")
def stack(digits: Workspace) -> Iterator[Stack]:
    (digits.folder / "hand.yaml").write_text(PLAN)
    process = digits.start("up", "hand.yaml")

    def served() -> bool:
        assert process.poll() is None, (digits.folder.parent / "output.log").read_text()[-3000:]
        if not (digits.storage / "stack.json").exists():
            return False
        try:
            return bool(Stack(digits, process.pid).ask("/deployments/name/hand/on-demand"))
        except OSError:
            return False

    wait_for("the deployments being served", served, 180)
    try:
        yield Stack(digits, process.pid)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
            process.wait(60)


def _statuses(digits: Workspace, flow_run: str) -> list[str]:
    query = (
        "select status from runs where run_uuid in (select run_uuid from tags where key = 'headstart.flow_run_id' and value = ?)"
    )
    with sqlite3.connect(digits.storage / "mlflow.db") as database:
        return [status for (status,) in database.execute(query, [flow_run])]


def test_nightly_runs_at_two_and_no_deployment_has_a_slot_that_a_crash_could_keep(stack: Stack) -> None:
    nightly = stack.ask("/deployments/name/hand/nightly")
    assert [one["schedule"]["cron"] for one in nightly["schedules"]] == ["0 2 * * *"]
    assert nightly["global_concurrency_limit"] is None
    assert stack.ask("/deployments/name/hand/on-demand")["global_concurrency_limit"] is None
    form = nightly["parameter_openapi_schema"]["definitions"]["Plan"]["properties"]
    assert {"name", "backbones", "freeze", "fit", "promotion"} <= form.keys()
    assert all(field.get("description") for field in form.values())
    assert "s3://" in nightly["parameter_openapi_schema"]["properties"]["source"]["description"]


def test_a_run_by_hand_ends_with_its_leaderboard_verdict_and_runs_and_a_second_waits_for_it(stack: Stack) -> None:
    run, second = stack.trigger(), stack.trigger()
    wait_for("the run's end", lambda: stack.state(run) in ("Completed", "Failed", "Crashed"), 400)
    assert stack.state(run) == "Completed"
    artifacts = stack.artifacts(run)
    assert artifacts["hand-progress"] == 100.0
    assert "linear" in artifacts["hand-leaderboard"]
    assert "romoted" in artifacts["hand-verdict"]
    assert "FINISHED" in (found := set(_statuses(stack.workspace, run) + _statuses(stack.workspace, second)))
    assert found == {"FINISHED"}
    wait_for("the second run's end", lambda: stack.state(second) in ("Completed", "Failed", "Crashed"), 120)
    assert stack.state(second) == "Completed"
    logs = stack.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run, second]}}})
    assert any("Waiting for another retraining of 'hand'" in log["message"] for log in logs)


def test_a_cancelled_run_stops_its_ray_job_and_ends_its_mlflow_runs(stack: Stack) -> None:
    def trainings() -> set[Path]:
        return set(stack.workspace.storage.glob("jobs/train-*/span.json"))

    before = trainings()
    run = stack.trigger(fit={"epochs": 200, "batch_size": 64, "image_size_px": 32})
    wait_for("its training", lambda: trainings() - before, 300)
    stack.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for("the cancellation", lambda: stack.state(run) == "Cancelled", 120)
    wait_for("the end of the MLflow runs", lambda: set(_statuses(stack.workspace, run)) == {"KILLED"}, 60)
    assert not [p for p in psutil.process_iter(["cmdline"]) if _is_a_job_below(p.info["cmdline"] or [], stack.workspace.folder)]


def test_ctrl_c_ends_what_the_stack_started(stack: Stack) -> None:
    family = psutil.Process(stack.pid).children(recursive=True)
    assert family
    os.kill(stack.pid, signal.SIGINT)
    wait_for("the stack's end", lambda: not psutil.pid_exists(stack.pid) or _is_gone(stack.pid), 90)
    wait_for("its processes' end", lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 30)
    assert not (stack.workspace.storage / "stack.json").exists()
    assert not (stack.workspace.storage / "ray" / "cluster.json").exists()


def _is_gone(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _is_a_job_below(command: list[str], folder: Path) -> bool:
    return "flows.job" in command and any(str(folder) in word for word in command)
