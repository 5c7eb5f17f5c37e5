"""`headstart doctor` without servers: what is wrong is named with what to do, and what is silent holds up nobody."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flows import dataset, machine
from flows.cluster import Node
from flows.errors import AskedWrongly
from flows.machine import Gpu, Machine
from flows.stages import checkup
from tests.cli.conftest import Ask, make_workspace

HERE = Machine("here", "3.11.7", {"torch": "2.15.0+cu132", "numpy": "2.4.6"}, cuda="13.2", nccl="2.30.7", driver="")
H100 = Gpu("NVIDIA H100", 80 * 2**30)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("doctor") / "tiny", "name: tiny\n")


def test_a_laptop_is_well_and_nothing_is_made(workspace: Path, ask: Ask) -> None:
    before = sorted(workspace.rglob("*"))
    answer = ask(workspace, "doctor", "--timeout-seconds", "120", "--json")
    assert answer.status == 0, answer
    assert answer.told["well"]
    parts = {part["name"]: part for part in answer.told["parts"]}
    assert list(parts) == ["this machine", "workspace", "storage", "features", "MLflow", "Prefect", "Ray"]
    assert "40 samples" in parts["workspace"]["words"]
    assert answer.told["machine"]["versions"]["torch"] == machine.this_machine().versions["torch"]
    assert sorted(workspace.rglob("*")) == before


def test_all_that_is_wrong_is_told_at_once_with_what_to_do(workspace: Path, ask: Ask, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9"
    answer = ask(
        tmp_path,
        *("doctor", "--timeout-seconds", "120"),
        HEADSTART_TRACKING_ADDRESS=dead,
        HEADSTART_RAY_ADDRESS=dead,
        HEADSTART_PREFECT_ADDRESS=f"{dead}/api",
    )
    assert answer.status == 1
    told = " ".join(answer.out.split())
    for words in ("headstart init", "HEADSTART_TRACKING_ADDRESS", "HEADSTART_PREFECT_ADDRESS", "HEADSTART_RAY_ADDRESS"):
        assert words in told.replace(" │ │ │ ", ""), told
    assert "4 parts of 7 wrong" in answer.err


def test_a_server_that_takes_connections_and_says_nothing_holds_the_doctor_up_no_longer_than_it_says(
    workspace: Path, ask: Ask
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = ask(workspace, "doctor", "--timeout-seconds", "2", "--json", HEADSTART_RAY_ADDRESS=address)
        assert time.monotonic() - started < 10
    parts = {part["name"]: part for part in answer.told["parts"]}
    assert (parts["Ray"]["state"], parts["Ray"]["words"][:27]) == ("wrong", "did not answer within 2 s: ")
    assert parts["this machine"]["state"] == "ok"


@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        ({"gpus": (), "cuda": ""}, "ok", "no GPU"),
        ({"driver": "580.65.06"}, "ok", "2 x NVIDIA H100, driver 580.65.06, NCCL 2.30.7"),
        ({"driver": "570.10"}, "wrong", "CUDA 13.2 needs a driver from 580 on; update the driver of here"),
        ({"driver": "535.1", "cuda": "12.8"}, "ok", "CUDA 12.8"),
        ({"driver": "580.1", "cuda": ""}, "warning", "built for CPUs and leaves the GPUs idle"),
    ],
)
def test_gpus_drivers_and_builds_are_named(changed: dict[str, object], state: str, words: str) -> None:
    part = checkup.of_machine("here", replace(HERE, **{"gpus": (H100, H100)} | changed))  # type: ignore[arg-type]
    assert part.state == state
    assert words in part.words


def test_a_node_of_other_versions_is_wrong_and_another_build_of_torch_is_not() -> None:
    same = replace(HERE, name="node", python="3.11.9", versions={"torch": "2.15.0+cpu", "numpy": "2.4.6"})
    assert checkup.of_node(Node("10.0.0.2", "a", same), HERE).state == "ok"
    for other, words in (
        (replace(same, python="3.12.1"), "python 3.12.1, where the flow has 3.11.7"),
        (replace(same, versions={"torch": "2.14.0", "numpy": "2.4.6"}), "torch 2.14.0, where the flow has 2.15.0"),
        (replace(same, versions={"torch": "2.15.0"}), "numpy none, where the flow has 2.4.6"),
    ):
        part = checkup.of_node(Node("10.0.0.2", "a", other), HERE)
        assert part.state == "wrong"
        assert words in part.words
        assert machine.REMEDY in part.words
    assert checkup.of_node(Node("10.0.0.2", "a", None, "did not answer within 8 s"), HERE).state == "wrong"


@pytest.mark.parametrize(
    ("theirs", "state"), [("3.17.0", "ok"), ("3.18.1", "ok"), ("3.9.0", "warning"), ("2.22.1", "wrong"), ("", "ok")]
)
def test_servers_of_other_versions_are_told(theirs: str, state: str) -> None:
    part = checkup.versioned("MLflow", "http://host:5000", theirs, "3.17.2")
    assert part.state == state
    assert state == "ok" or "infra/requirements.lock has MLflow 3.17.2" in part.words


def test_a_machine_survives_its_way_over_json() -> None:
    one = replace(HERE, gpus=(H100,))
    assert machine.from_json(machine.to_json(one)) == one


def test_a_job_of_a_flow_with_other_versions_is_refused_and_one_of_the_same_is_not() -> None:
    expected = machine.expected()
    machine.check_expected(expected)
    machine.check_expected({})
    with pytest.raises(AskedWrongly, match=r"has other versions than the flow \(numpy .*, where the flow has 1.2.3\): start the"):
        machine.check_expected({machine.EXPECTED: '{"numpy": "1.2.3"}'})


REFUSED = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_GLOBAL": os.devnull}


@pytest.mark.parametrize("command", ["data status", "data history", "data checkout HEAD", "plan plan.yaml", "retrain plan.yaml"])
def test_a_workspace_that_git_refuses_is_told_in_gits_words(workspace: Path, ask: Ask, command: str) -> None:
    answer = ask(workspace, *command.split(), **REFUSED)
    assert (answer.status, answer.out) == (2, "")
    assert f"git does not take {workspace} for a repository: fatal: detected dubious ownership" in answer.err
    assert "safe.directory" in answer.err


def test_a_workspace_that_git_refuses_is_wrong_and_one_without_data_only_a_warning(ask: Ask, tmp_path: Path) -> None:
    dataset.init_workspace(tmp_path)
    found = [ask(tmp_path, "doctor", "--timeout-seconds", "120", "--json", **env) for env in ({}, REFUSED)]
    parts = [next(part for part in answer.told["parts"] if part["name"] == "workspace") for answer in found]
    assert [(answer.status, part["state"]) for answer, part in zip(found, parts, strict=True)] == [(0, "warning"), (1, "wrong")]
    assert "dubious ownership" in parts[1]["words"]


def test_a_status_that_dvc_can_not_write_a_lock_for_ends_as_an_ingest_there_does(
    workspace: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(workspace / ".dvc/tmp/lock"))

    monkeypatch.setattr("dvc.repo.Repo.status", status)
    answer = ask(workspace, "data", "status")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith(
        f"headstart: {workspace}/.dvc/tmp/lock: Read-only file system; name a place that can be read and"
    )
