"""Settings: where they come from, and what a process started for a workspace is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import processes
from flows.settings import child_environment, prepare_process, read_settings, stack_words
from flows.stages.preflight import dead_servers


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART_", "PREFECT_"))}
    monkeypatch.setattr(os, "environ", kept)


def test_what_is_left_out_is_embedded_under_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings()
    assert settings.workspace == tmp_path
    assert settings.tracking == f"sqlite:///{tmp_path}/.headstart/mlflow.db"


def test_a_workspace_that_is_named_stands_above_the_environments_in_this_process_and_its_children(tmp_path: Path) -> None:
    os.environ["HEADSTART_WORKSPACE"] = str(tmp_path / "other")
    settings = read_settings(tmp_path / "mine")
    prepare_process(settings)
    assert read_settings().workspace == tmp_path / "mine"
    assert child_environment(settings)["HEADSTART_WORKSPACE"] == str(tmp_path / "mine")


def test_what_the_caller_chose_of_another_tool_stays(tmp_path: Path) -> None:
    os.environ["PREFECT_API_URL"] = "http://elsewhere:4200/api"
    prepare_process(read_settings(tmp_path))
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere:4200/api"
    assert "PREFECT_HOME" not in os.environ


def test_a_running_stack_is_found_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    file = tmp_path / ".headstart" / "stack.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"pid": str(os.getpid()), "tracking_address": "http://127.0.0.1:5000"}))
    assert read_settings(tmp_path).tracking == "http://127.0.0.1:5000"
    file.write_text(json.dumps({"pid": str(2**22 + 1), "tracking_address": "http://127.0.0.1:5000"}))
    assert read_settings(tmp_path).tracking.startswith("sqlite:///")


def test_a_stack_of_which_a_part_is_dead_does_not_count_as_running(tmp_path: Path) -> None:
    file = tmp_path / ".headstart" / "stack.json"
    file.parent.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    dead = processes.mark(gone.pid)
    gone.wait()
    stack = {"pid": str(os.getpid()), "owner": processes.mark(), "tracking_address": "http://127.0.0.1:5000"}
    for parts, found in ((processes.mark(), True), (f"{processes.mark()} {dead}", False)):
        file.write_text(json.dumps(stack | {"parts": parts}))
        assert read_settings(tmp_path).tracking.startswith("http") == found
        words = dead_servers(read_settings(tmp_path))
        assert bool(words) is not found
    assert words.startswith(f"1 of the 2 servers of the running `headstart up` (pid {os.getpid()}) is dead")
    assert "end it with Ctrl-C and start it anew" in words
    assert stack_words(read_settings(tmp_path))["pid"] == str(os.getpid()), "it is there still, and says so to a second one"
    # Another process that has the pid of a killed one is not it.
    file.write_text(json.dumps(stack | {"parts": "", "owner": f"{os.getpid()}:1.0"}))
    assert read_settings(tmp_path).tracking.startswith("sqlite:///")
