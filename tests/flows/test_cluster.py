"""The Ray room without training: a real local head, taken over from a killed command, and trivial jobs on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import cluster, job
from flows.cluster import api, code, head, homes, jobs, processes
from flows.errors import AskedWrongly, Busy, HeadstartError, Unreachable
from flows.records import DataVersion, Sample, Workers

ROOT = Path(__file__).parents[2]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

OPEN_AND_STAY = """
import sys, time
from pathlib import Path
from flows.cluster import open_cluster
with open_cluster(None, Path(sys.argv[1])) as cluster:
    print(cluster.address, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@dataclass(frozen=True)
class Head:
    """The head under test, where its storage is, and the address under which the killed command had started it."""

    cluster: cluster.Cluster
    storage: Path
    first_address: str

    @property
    def mark(self) -> str:
        return str(json.loads((self.storage / "ray" / "cluster.json").read_text())["home"])


@contextlib.contextmanager
def _command(storage: Path, seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another command that holds the storage's cluster for so long, and the address it says."""
    arguments = [sys.executable, "-c", OPEN_AND_STAY, str(storage), str(seconds)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    storage = tmp_path_factory.mktemp("storage")
    with _command(storage, 600) as (process, address):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with cluster.open_cluster(None, storage, num_cpus=2) as opened:
        yield Head(opened, storage, address)


def _order(storage: Path, key: str) -> job.Job:
    version = DataVersion("d1", "r1", (Sample("0" * 32, "a.png", "test", {"label": "a"}),), storage / "data", ())
    return job.Job("score", key, "tiny", storage, version, {"label": ("a", "b")}, Workers())


def test_the_head_that_a_killed_command_left_is_taken_over(local: Head) -> None:
    assert local.cluster.owned
    assert local.cluster.address == local.first_address


def test_every_port_of_the_head_is_on_the_loopback(local: Head) -> None:
    listening = set()
    for process in processes.members(local.mark):
        with contextlib.suppress(psutil.Error):
            listening |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= set(LOOPBACK)


def test_the_head_refuses_whoever_has_no_token(local: Head) -> None:
    with pytest.raises(AskedWrongly, match="refuses our token"):
        api.call(replace(local.cluster, token=None), "GET", "/api/jobs/")
    assert (local.storage / "ray" / "token").stat().st_mode & 0o777 == 0o600
    assert str(local.cluster.token) not in repr(local.cluster)


def test_a_second_command_shares_the_head_and_leaves_it_running(local: Head) -> None:
    with _command(local.storage, 0) as (process, address):
        assert process.wait(30) == 0
    assert address == local.cluster.address
    assert api.answers(local.cluster)


def test_the_address_of_the_storages_own_head_needs_no_token_of_the_person(local: Head) -> None:
    with cluster.open_cluster(local.cluster.address, local.storage) as opened:
        assert not opened.owned
        assert jobs.find(opened, str(local.storage / "nothing")) is None
    assert api.answers(local.cluster)


def test_a_group_larger_than_a_head_in_use_is_refused(local: Head) -> None:
    with (
        _command(local.storage, 60),
        pytest.raises(Busy, match="500"),
        cluster.open_cluster(None, local.storage, num_cpus=500),
    ):
        pass
    assert api.answers(local.cluster)


def test_a_job_runs_our_two_packages_and_gives_its_outcome(local: Head) -> None:
    order = _order(local.storage, "k1")
    outcome = cluster.run_job(local.cluster, job.write_job(order), key=order.key, name="tiny")
    assert outcome == job.JobOutcome(scores={})


def test_a_job_that_cannot_succeed_says_why_and_is_not_tried_again(local: Head) -> None:
    order = replace(_order(local.storage, "k2"), bundles=("work/no-bundle",))
    started: list[str] = []
    with pytest.raises(HeadstartError, match="no-bundle"):
        cluster.run_job(local.cluster, job.write_job(order), key=order.key, name="tiny", on_start=started.append)
    assert len(started) == 1


def test_a_stopped_job_is_found_before_and_confirmed_as_stopped_after(local: Head) -> None:
    order = _order(local.storage, "k3")
    metadata = {"job_key": "k3", "name": "tiny", "flow_run_id": "f3", "folder": order.folder.address}
    submission = jobs.submit(local.cluster, job.write_job(order).job_file, metadata=metadata)
    assert jobs.find(local.cluster, order.folder.address).submission_id == submission.submission_id  # type: ignore[union-attr]
    assert [s.submission_id for s in cluster.find_by_flow_run(local.cluster, "f3")] == [submission.submission_id]
    assert cluster.stop(local.cluster, submission.submission_id).status == "STOPPED"
    assert jobs.find(local.cluster, order.folder.address) is None
    assert cluster.find_by_flow_run(local.cluster, "f3") == ()


def test_jobs_of_another_storage_on_a_shared_cluster_are_neither_joined_nor_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, old, theirs = (tmp_path / name for name in ("a/jobs/train-k", "a/jobs/train-old", "b/jobs/train-k"))
    listed = [
        {"submission_id": folder.as_posix(), "status": "RUNNING", "metadata": {"name": "tiny", "folder": str(folder)}}
        for folder in (theirs, old, mine)
    ]
    monkeypatch.setattr(jobs, "call", lambda *_: listed)
    shared = cluster.Cluster("http://shared:8265", owned=False)
    assert jobs.find(shared, str(mine)) == jobs.Submission(mine.as_posix(), "RUNNING", str(mine))
    assert [s.folder for s in jobs.find_orphans(shared, "tiny", str(mine.parent), besides=(str(mine),))] == [str(old)]


def test_credentials_never_enter_a_jobs_environment() -> None:
    secret = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    )
    plain = {"AWS_ENDPOINT_URL_S3": "http://s3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "9", "NCCL_DEBUG": "INFO"}
    assert jobs.worker_environment({**plain, **dict.fromkeys(secret, "hidden"), "HOME": "/"}) == plain


def test_a_choice_of_kernels_reaches_the_workers() -> None:
    chosen = {
        "MKL_CBWR": "COMPATIBLE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    assert jobs.worker_environment({**chosen, "MKL_NUM_THREADS": "8", "PATH": "/bin"}) == chosen


def test_an_unknown_job_is_named(local: Head) -> None:
    with pytest.raises(HeadstartError, match="knows no job nothing"):
        jobs.watch(local.cluster, "nothing")


def test_the_last_to_leave_ends_the_heads_processes_and_no_other(tmp_path: Path, local: Head) -> None:
    decoy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, processes.MARK: "other"})
    try:
        with cluster.open_cluster(None, tmp_path) as second:
            mark = json.loads((tmp_path / "ray" / "cluster.json").read_text())["home"]
            assert second.address != local.cluster.address
            assert processes.members(mark)
        assert not processes.members(mark)
        assert not Path(mark).exists()
        assert not (tmp_path / "ray" / "cluster.json").exists()
        assert decoy.poll() is None
        assert api.answers(local.cluster)
    finally:
        decoy.kill()
        decoy.wait()


def test_a_head_is_ended_where_who_uses_it_can_no_longer_be_written(tmp_path: Path) -> None:
    record = tmp_path / "ray" / "cluster.json"
    with contextlib.ExitStack() as twice:
        for _ in range(2):
            twice.enter_context(cluster.open_cluster(None, tmp_path))
        mark = json.loads(record.read_text())["home"]
        assert processes.members(mark)
        # As on a full disk: no file can be written that then takes the record's name.
        record.with_name(f".cluster.json.{os.getpid()}.new").mkdir()
    assert not processes.members(mark)
    assert not record.exists()


def test_a_package_holds_our_code_and_nothing_else() -> None:
    with zipfile.ZipFile(BytesIO(code.pack())) as package:
        names = package.namelist()
    assert {"flows/job/__main__.py", "heads/training/loop.py"} <= set(names)
    assert {Path(name).suffix for name in names} <= {".py", ".yaml"}
    assert code.pack() == code.pack()


def test_too_little_memory_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MIN_MEMORY_BYTES", 2**60)
    with pytest.raises(AskedWrongly, match="GiB"), cluster.open_cluster(None, tmp_path):
        pass
    assert not (tmp_path / "ray" / "cluster.json").exists()


def test_running_out_of_ports_is_refused() -> None:
    with pytest.raises(AskedWrongly, match="free ports"):
        processes.free_ports(70_000)


def test_an_address_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="http://host:8265"), cluster.open_cluster("ray://here:10001", tmp_path):
        pass


def test_an_address_where_nobody_listens_is_unreachable(tmp_path: Path) -> None:
    (port,) = processes.free_ports(1)
    with pytest.raises(Unreachable, match=str(port)), cluster.open_cluster(f"http://127.0.0.1:{port}", tmp_path):
        pass


def test_an_address_that_stays_silent_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.CONNECT_SECONDS < 10
    monkeypatch.setattr(api, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, begun = silent.getsockname()[1], time.monotonic()
        with pytest.raises(Unreachable), cluster.open_cluster(f"http://127.0.0.1:{port}", tmp_path):
            pass
    assert time.monotonic() - begun < 5


def test_a_server_that_is_not_ray_is_told_apart(tmp_path: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            pytest.raises(Unreachable, match="not Ray"),
            cluster.open_cluster(f"http://127.0.0.1:{server.server_port}", tmp_path),
        ):
            pass
        server.shutdown()


RENAMED = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, b"ray-dashboard-N", 0, 0, 0)
print("there", flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {RENAMED!r}], env={{}}); sys.stdin.read()"


def test_a_process_that_lost_its_mark_and_its_parent_is_found_by_its_session_and_no_other_is() -> None:
    marked = os.environ | {processes.MARK: "here"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen([sys.executable, "-c", PARENT], env=marked, start_new_session=True, **pipes) as parent,  # type: ignore[call-overload]
        subprocess.Popen([sys.executable, "-c", RENAMED], env={}, start_new_session=True, **pipes) as other,  # type: ignore[call-overload]
    ):
        try:
            assert parent.stdout.readline() == other.stdout.readline() == b"there\n"
            (child,) = psutil.Process(parent.pid).children()
            parent.kill()
            parent.wait()
            assert processes.members("here") == []
            assert processes.members("here", parent.pid) == [child]
            processes.end("here", parent.pid)
            assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            assert other.poll() is None
        finally:
            other.kill()


def test_a_dead_local_head_is_told_within_seconds_and_opened_anew(tmp_path: Path) -> None:
    order = _order(tmp_path, "k4")
    with cluster.open_cluster(None, tmp_path) as opened:
        assert cluster.death(opened) is None
        metadata = {"job_key": "k4", "name": "tiny", "flow_run_id": "f4", "folder": order.folder.address}
        submission = jobs.submit(opened, job.write_job(order).job_file, metadata=metadata)
        (gcs,) = (p for p in processes.members(_record(tmp_path)["home"]) if p.name() == "gcs_server")
        gcs.kill()
        begun = time.monotonic()
        with pytest.raises(HeadstartError, match=r"the local Ray died while the job k4-\w+ ran .*goes on from there"):
            jobs.watch(opened, submission.submission_id)
        assert time.monotonic() - begun < 20
        anew = cluster.reopen(tmp_path)
        assert cluster.death(anew) is None
        assert api.answers(anew)
    assert not (tmp_path / "ray" / "cluster.json").exists()


def test_a_cluster_elsewhere_that_falls_silent_is_told_of_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = processes.free_ports(1)
    monkeypatch.setattr(jobs, "TOLD_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "SILENCE_SECONDS", 1.5)
    told: list[str] = []
    with pytest.raises(Unreachable, match="has not answered for 2 s while the job j1 ran"):
        jobs.watch(cluster.Cluster(f"http://127.0.0.1:{port}", owned=False), "j1", say=told.append)
    assert told == [f"Ray at http://127.0.0.1:{port} does not answer; it is waited for, 2 s at most"]


def test_a_killed_heads_home_goes_with_the_next_start_and_one_that_is_lived_in_stays(local: Head, tmp_path: Path) -> None:
    made = "from flows.cluster import homes; print(homes.make())"
    left = Path(subprocess.run([sys.executable, "-c", made], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip())
    mine = homes.make()
    try:
        assert left in homes.sweep()
        assert not left.exists()
        assert mine.is_dir()
        assert Path(local.mark).is_dir(), "its maker was killed, and its processes live"
    finally:
        shutil.rmtree(mine)


def test_what_the_heads_processes_make_for_a_while_lies_in_its_home(local: Head) -> None:
    places = {p.environ().get("TMPDIR") for p in processes.members(local.mark) if p.name() == "raylet"}
    assert places == {str(Path(local.mark) / "tmp")}
    assert list((Path(local.mark) / "tmp").glob("pymp-*")), "the dashboard makes one"


def _record(storage: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((storage / "ray" / "cluster.json").read_text())
    return record


def test_rays_private_names_that_we_use_are_there() -> None:
    code = """
import inspect
from ray._private.node import Node
from ray.scripts.scripts import main
from ray.train.torch import TorchTrainer
from flows.cluster.ray_patches import IDLE_CALLBACKS
methods = [(Node, "start_ray_client_server"), (Node, "start_monitor"), (TorchTrainer, "_create_default_callbacks")]
assert all(inspect.isfunction(getattr(of, name)) for of, name in methods)
made = inspect.getsource(TorchTrainer._create_default_callbacks)
assert all(name in made for name in IDLE_CALLBACKS), made
"""
    subprocess.run([sys.executable, "-c", code], check=True)
