"""Who is at work: a mark a flow run, which dies with its process; and the end of what killed ones left in Ray and MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from flows import cluster, job, processes, tracking
from flows.settings import Settings
from flows.words import counted


@contextlib.contextmanager
def attending(settings: Settings, flow_run_id: str) -> Iterator[None]:
    """Let others see for the block that this process runs the flow run: a locked file, whose lock dies with the process."""
    if not flow_run_id:
        yield
        return
    file = _folder(settings) / flow_run_id
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A file without a word in it is not judged: its run may be about to lock it.
        lock.write(processes.mark())
        lock.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def roll_call(settings: Settings) -> tuple[set[str], set[str]]:
    """The ids of this storage's flow runs that a process runs, and of those whose process was killed."""
    at_work: set[str] = set()
    gone: set[str] = set()
    for file in _folder(settings).glob("*"):
        with contextlib.suppress(FileNotFoundError), file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                at_work.add(file.name)
            else:
                (gone if lock.read() else at_work).add(file.name)
    return at_work, gone


def forget(settings: Settings, flow_run_id: str) -> None:
    """Take away the mark of a run whose process was killed."""
    (_folder(settings) / flow_run_id).unlink(missing_ok=True)


def end_crashed(settings: Settings) -> list[str]:
    """End in Ray and MLflow the retrainings whose processes were killed, and say what was ended, one line a model name.

    Whoever is at work on a name holds its lock (`flows.stages.session`); a lock that nobody holds and that still says who did
    is one of a crash. Raises Unreachable when Ray or MLflow do not answer.
    """
    told = []
    for file in sorted((settings.storage / "locks").glob("*")):
        with file.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if lock.read().strip():
                told += _end(settings, file.name)
                os.ftruncate(lock.fileno(), 0)
    return told


def _end(settings: Settings, name: str) -> list[str]:
    jobs = 0
    if (ray := cluster.find_cluster(settings.ray_address, settings.storage)) is not None:
        for submission in cluster.find_orphans(ray, name, job.jobs_root(settings.storage)):
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
