"""Jobs on a cluster: submit, watch, stop and find them."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.error import HTTPError

from flows import machine
from flows.cluster import code
from flows.cluster.api import Cluster, call, death, job_path
from flows.errors import HeadstartError, Unreachable
from flows.words import Say

RUNNING = ("PENDING", "RUNNING")
POLL_SECONDS, LOOK_SECONDS = 0.5, 0.05
# A head that is alive but busy may not answer for a while.
SILENCE_SECONDS = 60.0
TOLD_SECONDS = 5.0
ANSWER_SECONDS = 10.0
STOP_SECONDS = 60.0

# The variables of the person's environment that workers get. Ray writes a job's environment to its logs and shows it on its
# dashboard, so credentials stay out: a local head has inherited them, a cluster's nodes hold their own.
# The choice of kernels is among them, since it changes bits on the same machine.
KERNELS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
PASSED_ON = ("MLFLOW_", "AWS_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "TORCH_HOME", "NCCL_", "GLOO_", "MALLOC_", *KERNELS)
CREDENTIALS = ("ACCESS_KEY", "PASSWORD", "SECRET", "TOKEN")

# glibc gives freed blocks of some size back to the kernel, which hands them out again a layer later, page by page: a third to a
# half of a forward pass on a CPU (tests/benchmarks/kept_memory.py). Told so, it keeps them, in one arena for all threads.
KEEPING_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}

# After its job a driver ends; told to stay it takes others, and told to wait it has none yet: it is handed the first as well.
DriverOption = Literal["", "--stay", "--wait"]
Until = Callable[[], bool]


@dataclass(frozen=True)
class Submission:
    """A job as Ray knows it; `folder` is the path or the address of the job's folder."""

    submission_id: str
    status: str
    folder: str
    message: str = ""

    @property
    def is_running(self) -> bool:
        return self.status in RUNNING


def submit(cluster: Cluster, job_file: str, *, metadata: Mapping[str, str], option: DriverOption = "") -> Submission:
    """Submit the program `flows.job` on this job file, with `flows` and `heads` as its code."""
    submission_id = f"{metadata['job_key']}-{secrets.token_hex(4)}"
    body = {
        "submission_id": submission_id,
        # exec: without it a kill would hit the shell, and not the driver below it.
        "entrypoint": f"exec {cluster.python} -m flows.job {shlex.quote(job_file)} {option}".rstrip(),
        "metadata": dict(metadata),
        "runtime_env": {"working_dir": code.upload(cluster), "env_vars": _environment(cluster)},
    }
    answer = call(cluster, "POST", "/api/jobs/", body)
    if answer is None:
        raise Unreachable(f"{cluster.address} has no Jobs API: Ray there needs the `ray[default]` installation")
    return Submission(submission_id, "PENDING", metadata["folder"])


def watch(cluster: Cluster, submission_id: str, say: Say | None = None, until: Until | None = None) -> Submission:
    """Wait until a submission has ended, or `until` is true, and return it; `say` gets a message if Ray is silent.

    Raises HeadstartError as soon as a local head is dead, Unreachable if a cluster has been silent for a minute.
    """
    heard_at, was_told = time.monotonic(), False
    while True:
        if reason := death(cluster):
            raise HeadstartError(
                f"the local Ray died while the job {submission_id} ran ({reason}); what was trained is kept, "
                "and the next retraining goes on from there"
            )
        submission = _look(cluster, submission_id)
        silent = time.monotonic() - heard_at
        if submission is not None:
            heard_at, was_told = time.monotonic(), False
            if not submission.is_running or (until and until()):
                return submission
        elif silent > SILENCE_SECONDS:
            raise Unreachable(
                f"Ray at {cluster.address} has not answered for {silent:.0f} s while the job {submission_id} ran: look after it; "
                "what was trained is kept, and the next retraining goes on from there"
            )
        elif silent > TOLD_SECONDS and say and not was_told:
            say(f"Ray at {cluster.address} does not answer; it is waited for, {SILENCE_SECONDS:.0f} s at most")
            was_told = True
        _wait(POLL_SECONDS, until)


def _wait(seconds: float, until: Until | None) -> None:
    """Wait for so long, or until `until` is true, which is asked more often than Ray, since it costs less."""
    end_at = time.monotonic() + seconds
    while not (until and until()) and (left := end_at - time.monotonic()) > 0:
        time.sleep(min(LOOK_SECONDS, left))


def _look(cluster: Cluster, submission_id: str) -> Submission | None:
    """The submission as it is now, or None if Ray does not answer, or answers with a server error."""
    try:
        return read(cluster, submission_id)
    except Unreachable:
        return None
    except HeadstartError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code >= 500:
            return None
        raise


def read(cluster: Cluster, submission_id: str) -> Submission:
    """The submission as it is now. Raises HeadstartError if the cluster does not know it."""
    job = call(cluster, "GET", job_path(submission_id), timeout_seconds=ANSWER_SECONDS)
    if job is None:
        raise HeadstartError(f"Ray at {cluster.address} knows no job {submission_id}: was the cluster restarted meanwhile?")
    return _submission(job)


def stop(cluster: Cluster, submission_id: str) -> Submission:
    """Stop a job, and return it once Ray confirms its end. Raises HeadstartError if it still runs after a minute."""
    call(cluster, "POST", job_path(submission_id) + "/stop", timeout_seconds=ANSWER_SECONDS)
    end_at = time.monotonic() + STOP_SECONDS
    while (submission := read(cluster, submission_id)).is_running:
        if time.monotonic() > end_at:
            raise HeadstartError(f"the Ray job {submission_id} still runs {STOP_SECONDS:.0f} s after it was asked to stop")
        time.sleep(POLL_SECONDS / 2)
    return submission


def find(cluster: Cluster, folder: str, handed_to: str | None = None) -> Submission | None:
    """The running submission of the job in this folder, or that whose driver it was `handed_to`; None if there is neither."""
    if own := _running(cluster, "folder", folder):
        return own[0]
    known = call(cluster, "GET", job_path(handed_to), timeout_seconds=ANSWER_SECONDS) if handed_to else None
    submission = _submission(known) if known else None
    return submission if submission and submission.is_running else None


def find_by_flow_run(cluster: Cluster, flow_run_id: str) -> tuple[Submission, ...]:
    """The running submissions of this flow run."""
    return _running(cluster, "flow_run_id", flow_run_id)


def find_orphans(cluster: Cluster, name: str, root: str, *, besides: Collection[str] = ()) -> tuple[Submission, ...]:
    """The running submissions for this model name, of jobs directly in the folder `root`, but for those in `besides`.

    A caller that holds the name's lock knows that nobody waits for them. Jobs of other storages on the cluster are left alone.
    """
    named = _running(cluster, "name", name)
    return tuple(s for s in named if s.folder.rpartition("/")[0] == root and s.folder not in besides)


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a person's environment that workers need, without credentials."""
    passed_on = {name: value for name, value in environ.items() if name.startswith(PASSED_ON)}
    return {name: value for name, value in passed_on.items() if not any(word in name for word in CREDENTIALS)}


def _running(cluster: Cluster, name: str, value: str) -> tuple[Submission, ...]:
    jobs = call(cluster, "GET", "/api/jobs/") or []
    mine = [job for job in jobs if job.get("submission_id") and (job.get("metadata") or {}).get(name) == value]
    return tuple(s for s in map(_submission, mine) if s.is_running)


def _submission(job: Mapping[str, Any]) -> Submission:
    folder = str((job.get("metadata") or {}).get("folder", ""))
    return Submission(job["submission_id"], job["status"], folder, job.get("message") or "")


def _environment(cluster: Cluster) -> dict[str, str]:
    common = {
        "OMP_NUM_THREADS": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # A report waits until the controller polls: at Ray's interval of two seconds, short epochs would mostly wait.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # A group is sized by what Ray last counted, and waits for that room, though a node may be lost since. Counted every 20 s.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    }
    # The one node of a local head is never drained, so the watcher, a process, need not be started.
    # Nor can it have other versions than this process, whose Python it runs.
    local = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if cluster.owned else machine.expected()
    return common | KEEPING_MEMORY | local | worker_environment(os.environ)
