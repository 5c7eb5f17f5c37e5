"""A Ray that fails: jobs whose drivers die, a stop that is not confirmed, heads that do not start."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray import exceptions

from flows import cluster, job
from flows.cluster import api, homes, jobs, launch, processes
from flows.cluster.deaths import telling_deaths
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.job import JobFolder, JobOutcome
from flows.plan import parse_plan
from flows.records import DataVersion, Workers
from flows.settings import Settings
from flows.stages import session
from flows.stages.background.warming import warm, warming
from flows.stages.session import stop_retraining


@dataclass
class Ray:
    """As much of Ray's Jobs API as a flow asks, over HTTP: what becomes of each job is its place in `ends`."""

    files: JobFolder
    ends: list[str | Callable[[], None]] = field(default_factory=list)
    has_jobs: bool = True
    obeys: bool = True
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked_to_stop: list[str] = field(default_factory=list)
    address: str = ""
    dying_words: str = ""

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """The value that it answers with; None is a 404."""
        match path.strip("/").split("/")[1:]:
            case ["version"]:
                return {"ray_version": "2.60.0"}
            case ["packages", *_]:
                return {}
            case ["jobs"]:
                if method == "POST":
                    return self._submit(json.loads(body)) if self.has_jobs else None
                return list(self.jobs.values())
            case ["jobs", name, "stop"]:
                self.asked_to_stop.append(name)
                self.jobs[name]["status"] = "STOPPED" if self.obeys else "RUNNING"
                return {"stopped": True}
            case ["jobs", name]:
                return self.jobs.get(name)
        raise AssertionError(f"nobody should ask for {method} {path}")

    def _submit(self, asked: dict[str, Any]) -> dict[str, str]:
        name, number = asked["submission_id"], len(self.jobs)
        end = self.ends[number]
        status = end if isinstance(end, str) else "SUCCEEDED"
        if not isinstance(end, str):
            end()
        self.jobs[name] = {
            "submission_id": name,
            "status": status,
            "metadata": asked["metadata"],
            "message": self.dying_words or f"death number {number + 1}",
        }
        return {"submission_id": name}


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[Ray]:
    told = Ray(JobFolder.at(tmp_path / "jobs" / "train-k"))
    (tmp_path / "jobs" / "train-k").mkdir(parents=True)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = told.answer(self.command, self.path, body)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def run(ray: Ray, **how: Any) -> JobOutcome:
    return cluster.run_job(api.connect(ray.address), ray.files, key="k", name="tiny", **how)


def test_a_driver_that_dies_three_times_is_given_up_with_its_last_words(ray: Ray) -> None:
    ray.ends = ["FAILED"] * 9
    started: list[str] = []
    told: list[str] = []
    with pytest.raises(HeadstartError, match="the Ray job's driver died 3 times; the last: death number 3"):
        run(ray, on_start=started.append, say=told.append)
    assert started == list(ray.jobs)
    assert len(started) == 3
    again = "The Ray job's driver died (FAILED); it is started again, and goes on where it was"
    assert told == [again, again], "nobody starts it again after the third"


def test_a_driver_that_was_killed_says_so_and_what_to_do_and_its_log_begins_with_a_whole_line(ray: Ray) -> None:
    ray.ends = ["FAILED"] * 3
    log = "".join(f"line {number} of a log\n" for number in range(1000))
    ray.dying_words = f"Job entrypoint command failed with exit code -9, last available logs (truncated to 20,000 chars):\n{log}"
    with pytest.raises(HeadstartError) as raised:
        run(ray)
    first, second, *_ = str(raised.value).splitlines()
    assert first.startswith(
        "the Ray job's driver died 3 times; the last: a process of the job was killed, most often for want of"
    )
    assert second.removeprefix("... ") in log.splitlines()
    ray.ends, ray.dying_words = (
        ["FAILED"] * 6,
        "exited with code 1, last available logs:\na worker process has died, and was made anew",
    )
    with pytest.raises(HeadstartError, match="the last: exited with code 1"):
        run(ray)


LOW_ON_MEMORY = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 130d) was "
    "21.52GB used / 23.54GB limit (0.914017)\nOOM kill reason: ...\nRefer to the documentation"
)


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (
            exceptions.OutOfMemoryError(LOW_ON_MEMORY),
            "Ray killed the training for memory: 21.52 of 23.54 GB were in use on the node 10",
        ),
        (
            RuntimeError(f"Training failed due to controller error:\n{LOW_ON_MEMORY}"),
            "Ray killed the training for memory: 21.52 of",
        ),
        (exceptions.OutOfMemoryError("node running low on memory"), "Ray killed the training for memory; lower batch_size"),
        (
            exceptions.WorkerCrashedError(),
            "a process of the training was killed, most often for want of memory; lower batch_size",
        ),
        (
            RuntimeError("Training failed due to worker errors:\ntorch.OutOfMemoryError: CUDA out of memory.\n  more"),
            "there was no memory left for the training (torch.OutOfMemoryError: CUDA out of memory.); lower batch_size",
        ),
    ],
)
def test_what_kills_a_trainings_processes_is_told_in_a_sentence_with_what_to_do(error: Exception, first: str) -> None:
    with pytest.raises(HeadstartError) as raised, telling_deaths("the training"):
        raise error
    assert str(raised.value).startswith(first)
    assert str(raised.value).endswith("the same command goes on, and what was trained is kept")
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError("gone"), AskedWrongly("no memory left: running low on memory")])
def test_an_error_that_tells_of_no_kill_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, telling_deaths("the training"):
        raise error
    assert raised.value is error


def test_a_driver_that_died_twice_may_still_end_well(ray: Ray) -> None:
    ray.ends = ["FAILED", "FAILED", lambda: ray.files.write_outcome(JobOutcome(("w",)))]
    assert run(ray) == JobOutcome(("w",))
    assert len(ray.jobs) == 3


def other_files(ray: Ray) -> JobFolder:
    return JobFolder.at(ray.files.address.replace("train-k", "score-k"))


def end_when_handed(ray: Ray, end: str | Callable[[], None]) -> None:
    """What the driver does that stays after its first job: it takes another one, and ends it, or dies."""

    def wait() -> None:
        while (job_file := ray.files.read_next()) is None:
            time.sleep(0.01)
        assert job_file == other_files(ray).job_file
        if callable(end):
            end()
        else:
            ray.jobs[next(iter(ray.jobs))]["status"] = end

    ray.files.write_outcome(JobOutcome(("w",)))
    threading.Thread(target=wait, daemon=True).start()


def test_the_driver_of_one_job_takes_the_next_one(ray: Ray) -> None:
    scored = JobOutcome(scores={"a": "b"})
    ray.ends = ["RUNNING"]
    handover, started = cluster.Handover(), list[str]()
    threading.Timer(0.3, lambda: end_when_handed(ray, lambda: other_files(ray).write_outcome(scored))).start()
    assert run(ray, handover=handover, on_start=started.append) == JobOutcome(("w",))
    assert handover.folder == ray.files.address
    again = cluster.run_job(
        api.connect(ray.address), other_files(ray), key="s", name="tiny", handover=handover, on_start=started.append
    )
    assert again == scored
    assert started == 2 * list(ray.jobs), "one submission"
    handover.end()
    assert other_files(ray).read_next() == "", "it need not stay any longer"
    assert handover.folder == ""


def test_a_kept_driver_that_died_is_followed_by_a_new_one_without_a_word(ray: Ray) -> None:
    scored = JobOutcome(scores={"a": "b"})
    ray.ends = ["RUNNING", lambda: other_files(ray).write_outcome(scored)]
    handover, told = cluster.Handover(), list[str]()
    threading.Timer(0.3, lambda: end_when_handed(ray, "SUCCEEDED")).start()
    run(ray, handover=handover)
    again = cluster.run_job(api.connect(ray.address), other_files(ray), key="s", name="tiny", handover=handover, say=told.append)
    assert (again, len(ray.jobs), told) == (scored, 2, [])
    assert handover.folder == "", "the second ended by itself"


def waiting(ray: Ray) -> JobFolder:
    """The folder of a driver that is started before its first job is known."""
    return JobFolder.at(ray.files.address.replace("train-k", "waiting-1"))


def test_a_driver_begun_ahead_takes_the_first_job_and_whoever_asks_for_that_again_joins_it(ray: Ray) -> None:
    ray.ends = ["RUNNING"]
    handover, opened = cluster.Handover(), api.connect(ray.address)
    handover.begin(opened, waiting(ray), "tiny")
    [begun] = ray.jobs

    def end() -> None:
        while (job_file := waiting(ray).read_next()) is None:
            time.sleep(0.01)
        assert job_file == ray.files.job_file
        # The flow is killed here, and the next one asks for the same job.
        threading.Timer(0.5, lambda: ray.files.write_outcome(JobOutcome(("w",)))).start()
        ended.append(run(ray, handover=cluster.Handover(), on_start=started.append))

    ended, started = list[JobOutcome](), list[str]()
    later = threading.Thread(target=end)
    later.start()
    assert run(ray, handover=handover, on_start=started.append) == JobOutcome(("w",))
    later.join(20)
    assert (ended, started, list(ray.jobs)) == ([JobOutcome(("w",))], [begun, begun], [begun])
    assert ray.files.read_submission() == begun
    orphans = cluster.find_orphans(opened, "tiny", str(ray.files.place.path.parent))
    assert [orphan.submission_id for orphan in orphans] == [begun], "to one who asks for other jobs"


@pytest.mark.parametrize("status", ["SUCCEEDED", "STOPPED", "FAILED"])
def test_a_driver_begun_ahead_that_has_ended_is_followed_by_one_of_the_jobs_own(ray: Ray, status: str) -> None:
    ray.ends = [status, lambda: ray.files.write_outcome(JobOutcome(("w",)))]
    handover, told = cluster.Handover(), list[str]()
    handover.begin(api.connect(ray.address), waiting(ray), "tiny")
    assert run(ray, handover=handover, say=told.append) == JobOutcome(("w",))
    assert (len(ray.jobs), told, waiting(ray).read_next(), ray.files.read_submission()) == (2, [], None, None)


def test_a_driver_begun_ahead_of_a_job_that_runs_already_is_let_go(ray: Ray) -> None:
    ray.jobs["before"] = {"submission_id": "before", "status": "RUNNING", "metadata": {"folder": ray.files.address}}
    ray.ends = ["RUNNING", "RUNNING"]
    handover = cluster.Handover()
    handover.begin(api.connect(ray.address), waiting(ray), "tiny")
    threading.Timer(0.3, lambda: ray.files.write_outcome(JobOutcome(("w",)))).start()
    started: list[str] = []
    assert run(ray, handover=handover, on_start=started.append) == JobOutcome(("w",))
    assert started == ["before"]
    assert waiting(ray).read_next() == ""


def test_the_driver_that_a_killed_flow_handed_its_job_to_is_joined_and_its_other_drivers_are_stopped(
    ray: Ray, tmp_path: Path
) -> None:
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path / "data", ())
    order = job.Job("train", "k", "tiny", tmp_path, version, {"label": ("a", "b")}, Workers())
    for name in ("handed", "idle"):
        metadata = {"name": "tiny", "folder": str(tmp_path / "jobs" / f"waiting-{name}")}
        ray.jobs[name] = {"submission_id": name, "status": "RUNNING", "metadata": metadata}
    ray.files.note_submission("handed")
    threading.Timer(1.0, lambda: ray.files.write_outcome(JobOutcome(("w",)))).start()
    settings = Settings(workspace=tmp_path, storage_root=tmp_path, ray_address=ray.address)
    with session.open_session(settings, parse_plan({"name": "tiny"})) as opened:
        assert opened.run_job(order) == JobOutcome(("w",))
    assert (ray.asked_to_stop, list(ray.jobs)) == (["idle"], ["handed", "idle"])


def test_a_driver_begun_ahead_for_nothing_leaves_no_folder(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "open_cluster", lambda *_, **__: nullcontext(api.connect(ray.address)))
    ray.ends = ["RUNNING"]
    with warming(Settings(workspace=tmp_path, storage_root=tmp_path), "tiny", Workers()):
        started = warm()
        assert started
        started.join()
        [begun] = ray.jobs.values()
        folder = Path(begun["metadata"]["folder"])
        assert (folder.parent, begun["metadata"]["name"]) == (tmp_path / "jobs", "tiny")
    assert warm() is None
    assert not folder.exists(), "though it told a driver to end that ended with its Ray"


def test_a_driver_that_was_handed_its_job_and_dies_in_it_is_told_and_started_again(ray: Ray) -> None:
    ray.ends = ["RUNNING", lambda: ray.files.write_outcome(JobOutcome(("w",)))]
    handover, told = cluster.Handover(), list[str]()
    handover.begin(api.connect(ray.address), waiting(ray), "tiny")
    [begun] = ray.jobs

    def die() -> None:
        while waiting(ray).read_next() is None:
            time.sleep(0.01)
        ray.files.count_driver()
        ray.jobs[begun]["status"] = "FAILED"

    threading.Thread(target=die, daemon=True).start()
    assert run(ray, handover=handover, say=told.append) == JobOutcome(("w",))
    assert told == ["The Ray job's driver died (FAILED); it is started again, and goes on where it was"]


def test_a_driver_that_stays_for_a_flow_that_is_gone_is_stopped_before_its_job_is_asked_for_again(ray: Ray) -> None:
    ray.jobs["old"] = {"submission_id": "old", "status": "RUNNING", "metadata": {"folder": ray.files.address}}
    ray.files.write_outcome(JobOutcome(("old",)))
    ray.ends = ["", lambda: ray.files.write_outcome(JobOutcome(("new",)))]
    assert run(ray, handover=cluster.Handover()) == JobOutcome(("new",))
    assert ray.asked_to_stop == ["old"]


def test_what_the_first_driver_noted_is_there_for_the_second_and_what_an_earlier_order_left_for_none(ray: Ray) -> None:
    seen: list[set[str]] = []

    def look() -> None:
        seen.append({file.name for file in ray.files.place.path.iterdir()})

    def note_and_die() -> None:
        look()
        ray.files.write_todo(["w"])

    def end() -> None:
        look()
        ray.files.write_outcome(JobOutcome())

    for name in ("error.json", "outcome.json", "todo.json", "stored-here-1.json", "job.json"):
        (ray.files.place.path / name).write_text("{}")
    ray.ends = [note_and_die, end]
    run(ray)
    assert seen == [{"job.json"}, {"job.json", "todo.json"}]


def test_a_job_that_was_stopped_by_others_is_not_started_again(ray: Ray) -> None:
    ray.ends = ["STOPPED"]
    with pytest.raises(HeadstartError, match=r"the Ray job k-\w+ was stopped before its end; run it again to finish it"):
        run(ray)
    assert len(ray.jobs) == 1


def test_a_ray_without_a_jobs_api_is_told_what_it_lacks(ray: Ray) -> None:
    ray.has_jobs = False
    with pytest.raises(Unreachable, match=r"has no Jobs API: Ray there needs the `ray\[default\]` installation"):
        run(ray)


def test_a_stop_that_ray_does_not_confirm_is_no_stop(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 1.0)
    ended: list[str] = []
    monkeypatch.setattr(session.tracking, "stop_runs", lambda _, flow_run: ended.append(flow_run))
    ray.obeys = False
    ray.jobs["j1"] = {"submission_id": "j1", "status": "RUNNING", "metadata": {"flow_run_id": "f1"}}
    settings = Settings(storage_root=tmp_path, ray_address=ray.address)
    with pytest.raises(HeadstartError, match="the Ray job j1 still runs 1 s after it was asked to stop"):
        stop_retraining(settings, "f1")
    assert ray.asked_to_stop == ["j1"]
    assert ended == ["f1"], "its MLflow runs are ended all the same"
    ray.obeys = True
    assert stop_retraining(settings, "f1") == ["j1"]
    assert stop_retraining(settings, "f1") == [], "what has ended is not stopped again"


# What stands for Ray's own start: it says why and ends, is silent, or leaves a process that answers nothing.
REFUSES = "import sys; print('no room for the object store'); sys.exit(3)"
HANGS = "import time; print('thinking', flush=True); time.sleep(600)"
LEAVES = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], close_fds=True)"
FAULTS = {
    "refuses": (REFUSES, r"a local Ray did not start:\nno room for the object store"),
    "hangs": (HANGS, r"a local Ray did not start within 3 s:\nthinking"),
    "never answers": (LEAVES, r"a local Ray was started, but its Jobs API does not answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_head_that_does_not_start_says_why_and_leaves_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, words = FAULTS[fault]
    made: list[Path] = []
    make = homes.make

    def remember() -> Path:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(homes, "make", remember)
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr(launch, "START_SECONDS", 3.0)
    begun = time.monotonic()
    with pytest.raises(HeadstartError, match=words), cluster.open_cluster(None, tmp_path):
        raise AssertionError("there is none")
    assert time.monotonic() - begun < 30
    assert len(made) == 1
    assert not made[0].exists()
    assert processes.members(str(made[0])) == []
    assert not (tmp_path / "ray" / "cluster.json").exists()
    assert cluster.find_cluster(None, tmp_path) is None
