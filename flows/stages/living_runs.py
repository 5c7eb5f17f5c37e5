"""Which flow runs have a living process, by a lock file each; and the end of what killed ones left in Ray and MLflow."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from flows import cluster, job, processes, tracking
from flows.settings import Settings
from flows.stages.session import session_locks
from flows.words import counted


@contextlib.contextmanager
def attending(settings: Settings, flow_run_id: str) -> Iterator[None]:
    """Show for the block that this process runs the flow run, by a file whose lock dies with the process."""
    if not flow_run_id:
        yield
        return
    file = _folder(settings) / flow_run_id
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Written once it is locked: an empty file may be about to be locked, and counts as alive.
        lock.write(processes.mark())
        lock.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def roll_call(settings: Settings) -> tuple[set[str], set[str]]:
    """The ids of this storage's flow runs whose process lives, and of those whose process was killed."""
    alive: set[str] = set()
    killed: set[str] = set()
    for file in _folder(settings).glob("*"):
        with contextlib.suppress(FileNotFoundError), file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                alive.add(file.name)
            else:
                (killed if lock.read() else alive).add(file.name)
    return alive, killed


def forget(settings: Settings, flow_run_id: str) -> None:
    """Remove the lock file of a run whose process was killed."""
    (_folder(settings) / flow_run_id).unlink(missing_ok=True)


def end_crashed(settings: Settings) -> list[str]:
    """End in Ray and MLflow the retrainings whose processes were killed; a line for each model name says what was ended.

    A retraining holds the lock of its model name and writes its pid there (`flows.stages.session`): a pid in a lock that
    nobody holds means a crash. Raises Unreachable if Ray or MLflow does not answer.
    """
    lines = []
    for name in session_locks(settings).take_abandoned():
        lines += _end(settings, name)
    return lines


def _end(settings: Settings, name: str) -> list[str]:
    jobs = 0
    if (ray := cluster.find_cluster(settings.ray_address, settings.storage)) is not None:
        for submission in cluster.find_orphans(ray, name, job.jobs_root(settings.root).address):
            cluster.stop(ray, submission.submission_id)
            jobs += 1
    runs = len(tracking.Tracker(settings.tracking, settings.artifacts, name).repair())
    if not jobs and not runs:
        return []
    return [
        f"A retraining of {name} was killed: {counted(jobs, 'Ray job')} stopped, {counted(runs, 'MLflow retraining')} "
        "set from RUNNING to KILLED; what it has trained is kept"
    ]


def _folder(settings: Settings) -> Path:
    return settings.storage / "runs"
