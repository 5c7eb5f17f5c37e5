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
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import deployments, mlflow_tags, work_pool
from flows.errors import AskedWrongly
from flows.plan import form_values, parse_plan
from flows.records import Verdict
from flows.registry import Registry
from flows.stages.promotion import carry_out
from heads import bundle as bundles
from heads.data.image_transforms import preprocess_for
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
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
ENDED = ("Completed", "Failed", "Crashed")
# Of a work pool of Kubernetes, whose own template this build of Prefect does not know.
TEMPLATE = {
    "job_configuration": {"image": "{{ image }}"},
    "variables": {"type": "object", "properties": {"image": {"type": "string"}}},
}
# What differs with each registration of a deployment, or with its name.
OWN = {
    *("id", "created", "updated", "created_by", "updated_by", "name", "flow_id", "labels"),
    *("version", "version_id", "version_info", "branch"),
}


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

    def decide(self, **asked: str) -> str:
        """The id of a new run of the deployment `approve`, with these fields of its form filled in."""
        deployment = self.ask("/deployments/name/seen/approve")
        parameters = deployment["parameters"] | asked
        return str(self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"])

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
    (digits.folder / "seen.yaml").write_text(PLAN.replace("hand", "seen") + "promotion: {manual: true}\n")
    process = digits.start("up", "hand.yaml", "seen.yaml")

    def served() -> bool:
        assert process.poll() is None, (digits.folder.parent / "output.log").read_text()[-3000:]
        if not (digits.storage / "stack.json").exists():
            return False
        try:
            return bool(Stack(digits, process.pid).ask("/deployments/name/seen/approve"))
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
    wait_for("the run's end", lambda: stack.state(run) in ENDED, 400)
    assert stack.state(run) == "Completed"
    artifacts = stack.artifacts(run)
    assert artifacts["hand-progress"] == 100.0
    assert "linear" in artifacts["hand-leaderboard"]
    assert "romoted" in artifacts["hand-verdict"]
    assert "FINISHED" in (found := set(_statuses(stack.workspace, run) + _statuses(stack.workspace, second)))
    assert found == {"FINISHED"}
    wait_for("the second run's end", lambda: stack.state(second) in ENDED, 120)
    assert stack.state(second) == "Completed"
    logs = stack.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run, second]}}})
    assert any("Waiting for another retraining of 'hand'" in log["message"] for log in logs)


def test_what_waits_is_approved_or_rejected_by_the_deployment(stack: Stack, tmp_path: Path) -> None:
    digits = stack.workspace
    _let_two_wait(digits, tmp_path / "model" / "bundle")
    # Both at once: the one that is told of no version decides on the newest that waits.
    runs = stack.decide(version="1", reason="looked at its mistakes"), stack.decide(reason="reads 3 as 8", decision="reject")
    wait_for("the decisions", lambda: all(stack.state(run) in ENDED for run in runs), 180)
    assert [stack.state(run) for run in runs] == ["Completed", "Completed"]
    told = digits.json("models", "show", "seen")
    assert (told["champion"]["version"], told["challenger"]) == ("1", None)
    history = digits.json("models", "history", "seen")["history"]
    assert [(entry["kind"], entry["version"]) for entry in history[:2]] == [("verdict", "1"), ("verdict", "2")]
    decided = {entry["kind"]: entry for entry in history[2:]}
    assert {kind: entry["version"] for kind, entry in decided.items()} == {"approval": "1", "rejection": "2"}
    assert decided["approval"]["reasons"] == ["approved by hand: looked at its mistakes"]
    assert "by Prefect's flow run approve-seen (" in decided["rejection"]["asked_by"]


def _let_two_wait(digits: Workspace, bundle: Path) -> None:
    """Register two proven versions of `seen` that wait for a person, beside MLflow's server."""
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), fit=Fit(image_size_px=64))
    classes, preprocess = {"label": ("ant", "bee")}, preprocess_for("squeezenet1_1", 64)
    model = build_model(variant, classes, None)
    bundles.save(bundle, model=model, variant=variant, classes=classes, preprocess=preprocess, facts={})
    registry = Registry(f"sqlite:///{digits.storage / 'mlflow.db'}", digits.storage / "ledger")
    registry._client.create_registered_model("seen")
    for key in ("1", "2"):
        tags = {"headstart.work_key": key, mlflow_tags.BUNDLE_DIGEST: bundles.digest(bundle)}
        made = registry._client.create_model_version("seen", str(bundle.parent), tags=tags)
        proven = Verdict(True, ("it is better",))
        assert carry_out(registry, registry.find("seen", str(made.version)), proven, None, manual=True).verdict.waits


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


def _deploy(stack: Stack, *words: str) -> dict[str, Any]:
    return stack.workspace.json("deploy", "pooled.yaml", *words)


def _known(stack: Stack, name: str) -> dict[str, Any]:
    """What the server knows of a deployment, but for what differs with each registration or with its name."""
    known = {key: value for key, value in stack.ask(f"/deployments/name/{name}").items() if key not in OWN}
    known["schedules"] = [one["schedule"] | {"active": one["active"]} for one in known["schedules"]]
    # A file gives the keys that a person writes, the command the whole form.
    known["parameters"] = form_values(parse_plan(known["parameters"]["plan"])), known["parameters"].get("source")
    return known


def test_a_plan_is_deployed_to_a_pool_and_its_worker_runs_it(stack: Stack) -> None:
    workspace = stack.workspace
    (workspace.folder / "pooled.yaml").write_text(PLAN.replace("name: hand", "name: pooled\npromotion: {manual: true}"))
    workspace.run("deploy", "pooled.yaml", status=2)  # no such pool yet
    stack.ask("/work_pools/", {"name": "headstart", "type": "process"})
    first = _deploy(stack, "--cron", "0 3 * * 1-5", "--timezone", "Europe/Berlin")
    assert (first["pool_type"], first["num_workers_online"], first["removed"]) == ("process", 0, [])
    assert [each["name"] for each in first["deployments"]] == ["pooled/nightly", "pooled/on-demand", "pooled/approve"]
    assert (first["deployments"][0]["cron"], first["deployments"][0]["timezone"]) == ("0 3 * * 1-5", "Europe/Berlin")
    # A person pauses the nights and edits the plan: neither a second registration nor a changed plan wakes them.
    nightly = stack.ask("/deployments/name/pooled/nightly")
    stack.ask(f"/deployments/{nightly['id']}/pause_deployment", {})
    (workspace.folder / "pooled.yaml").write_text(PLAN.replace("name: hand", "name: pooled"))
    again = _deploy(stack)
    assert [each["id"] for each in again["deployments"]] == [each["id"] for each in first["deployments"][:2]]
    assert [each["is_paused"] for each in again["deployments"]] == [True, False]
    assert again["removed"] == ["pooled/approve"]
    run = stack.ask(f"/deployments/{again['deployments'][1]['id']}/create_flow_run", {})["id"]
    worker = workspace.start_module("prefect", "worker", "start", "--pool", "headstart", env={"PREFECT_API_URL": stack.api})
    try:
        wait_for("the run's end", lambda: stack.state(run) in ENDED, 300)
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(60)
    assert stack.state(run) == "Completed"
    assert "pooled-verdict" in stack.artifacts(run)


def test_the_file_of_deployments_registers_what_the_command_does(stack: Stack) -> None:
    workspace, root = stack.workspace, Path(__file__).parents[2]
    workspace.run("deploy", str(root / "flows/plans/demo.yaml"), "--timezone", "Etc/UTC")
    file = str(root / "infra/prefect.yaml")
    env = {"PREFECT_API_URL": stack.api, "HEADSTART_WORKSPACE": str(workspace.folder)}
    told = workspace.start_module("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file, env=env)
    assert told.wait(120) == 0
    for which in ("nightly", "on-demand"):
        assert _known(stack, f"retrain/digits-{which}") == _known(stack, f"digits/{which}")


def _register(stack: Stack, **changes: Any) -> work_pool.Registration:
    asked: dict[str, Any] = {"pool": "headstart", "image": None, "cron": "0 2 * * *", "timezone": None, "source": None}
    with temporary_settings({PREFECT_API_URL: stack.api}):
        plan = parse_plan({"name": "refused", "weights": "none"})
        return work_pool.register([plan], workspace=stack.workspace.folder, **asked | changes)


def test_a_pool_of_another_type_and_an_image_out_of_place_are_refused(stack: Stack) -> None:
    stack.ask("/work_pools/", {"name": "local", "type": "process"})
    stack.ask("/work_pools/", {"name": "dock", "type": "docker"})
    stack.ask("/work_pools/", {"name": "kube", "type": "kubernetes", "base_job_template": TEMPLATE})
    refused: list[tuple[dict[str, str], str]] = [
        ({"pool": "nowhere"}, r"no work pool 'nowhere' \(it has: dock, .*kube.*\); make it: prefect work-pool create nowhere"),
        ({"pool": "dock"}, "of the type 'docker'; allowed: process, kubernetes"),
        ({"pool": "kube"}, "names no image: give one with --image"),
        ({"pool": "local", "image": "registry/headstart:1"}, "whose runs are processes: leave it out"),
        ({"pool": "local", "timezone": "Mars/Base"}, "does not take --cron '0 2 .*' in the time zone Mars/Base"),
    ]
    for changes, words in refused:
        with pytest.raises(AskedWrongly, match=words):
            _register(stack, **changes)
    found = stack.ask("/deployments/filter", {"flows": {"name": {"any_": ["refused"]}}})
    assert found == []
    kube = _register(stack, pool="kube", image="registry/headstart:1")
    known = stack.ask(f"/deployments/{kube.deployments[0].id}")
    assert (kube.pool_type, known["job_variables"]) == ("kubernetes", {"image": "registry/headstart:1"})


def _serve_again() -> list[bool]:
    """What serving a plan again finds paused, and leaves so: the deployment of its nights, and their schedule."""
    served = deployments.of_plan(parse_plan({"name": "nights"}), "0 2 * * *", None, "Etc/UTC")
    asleep = deployments.keep_pauses(served)
    for each in served:
        each.apply()
    with get_client(sync_client=True) as client:
        known = client.read_deployment_by_name("nights/nightly")
    assert asleep == ["nights/nightly"] * (known.paused or not known.schedules[0].active)
    return [known.paused, not known.schedules[0].active]


def test_nights_that_a_person_paused_sleep_on_when_they_are_served_again_and_others_wake(stack: Stack) -> None:
    plans = [parse_plan({"name": name}) for name in ("never-served", "nights")]
    with temporary_settings({PREFECT_API_URL: stack.api}), get_client(sync_client=True) as client:
        assert _serve_again() == [False, False]
        deployments.pause(plans)
        assert client.read_deployment_by_name("nights/nightly").paused
        assert _serve_again() == [False, False]
        known = client.read_deployment_by_name("nights/nightly")
        client.update_deployment_schedule(known.id, known.schedules[0].id, active=False)
        deployments.pause(plans)
        assert _serve_again() == [False, True]
        client.pause_deployment(known.id)
        deployments.pause(plans)
        assert _serve_again() == [True, True]


@pytest.fixture
def other_numpy(tmp_path: Path) -> Path:
    """A folder that, first on Python's path, tells of another version of numpy than the one that is there."""
    metadata = tmp_path / "numpy-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.2.3\n")
    return tmp_path


def _ray_of(stack: Stack) -> dict[str, str]:
    """The variables that name the stack's Ray as a cluster of its own."""
    folder = stack.workspace.storage / "ray"
    token = folder / "token"
    return {
        "HEADSTART_RAY_ADDRESS": json.loads((folder / "cluster.json").read_text())["address"],
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


def test_the_doctor_asks_every_part_and_each_node_and_finds_another_version(
    stack: Stack, other_numpy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = stack.workspace
    env = workspace.env | _ray_of(stack)
    monkeypatch.setattr(workspace, "env", env)
    well = workspace.json("doctor", "--timeout-seconds", "150")
    assert [part["name"] for part in well["parts"]][:7] == [
        *("this machine", "workspace", "storage", "features", "MLflow", "Prefect", "Ray")
    ]
    assert {part["state"] for part in well["parts"]} == {"ok"}, well["parts"]
    (node,) = well["nodes"]
    assert (node["machine"]["versions"], node["fault"]) == (well["machine"]["versions"], "")
    # The flow has another numpy than the cluster: told by the doctor, and refused before a retraining trains.
    monkeypatch.setattr(workspace, "env", env | {"PYTHONPATH": str(other_numpy)})
    told = json.loads(workspace.run("doctor", "--json", "--timeout-seconds", "150", status=1))
    (bad,) = (part for part in told["parts"] if part["state"] == "wrong")
    assert bad["name"].startswith("Ray node ")
    assert "numpy 2." in bad["words"]
    assert "where the flow has 1.2.3" in bad["words"]
    assert "infra/Dockerfile" in bad["words"]
    plan = PLAN.replace("name: hand", "name: elsewhere").replace("epochs: 2", "epochs: 3")
    (workspace.folder / "elsewhere.yaml").write_text(plan)
    done = workspace.try_to("retrain", "elsewhere.yaml")
    assert done.returncode == 2
    assert "has other versions than the flow (numpy 2." in done.stderr


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
