"""`python -m flows.job JOBFILE`, on the cluster: does the job, and writes its outcome or its error beside the job file.

This process is the job's driver: for a training it begins a worker group, whose members do the work
(`flows.job.training.member`), or, of heads on stored features, does that work itself. With `--stay` it waits a while for another
job, which finds all loaded; with `--wait` for its first one, too, and loads meanwhile.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flows import machine, temporary_folders
from flows.cluster import nodes, workers
from flows.errors import Unreachable
from flows.job.job import Job, read_job
from flows.job.job_folder import JobFolder
from flows.job.outcome import JobOutcome
from flows.job.training.counted_beside import fitting_counted
from flows.job.training.runs import following

# Between two jobs of a retraining pass seconds. If its flow dies, nobody hands on another.
STAY_SECONDS = 60.0


def _train(job: Job) -> JobOutcome:
    """Run a training job to its end, with every work finished or failed for good."""
    folder, folders = job.folder, {work.key: job.work_folder(work) for work in job.works}
    todo = folder.read_todo()
    if todo is None:
        todo = tuple(key for key, work_folder in folders.items() if not work_folder.is_finished())
        folder.write_todo(todo)
    finished = {key for key, work_folder in folders.items() if work_folder.is_finished()}
    for work in job.works:
        if work.key in finished:
            folder.note_epochs(work.key, work.variant.fit.epochs, ended=True)
    if len(finished) < len(folders):
        _run_group(job)
    span, results = folder.read_span(), [folders[key].read_result() for key in todo]
    return JobOutcome(
        trained=todo,
        reused=tuple(key for key in folders if key not in todo),
        num_forwarded=folder.num_stored()[0] + sum(result.num_forwarded for result in results if result),
        seconds=round(span.last - span.first, 3) if span else 0.0,
    )


def _run_group(job: Job) -> None:
    """Train the works that are left in a worker group, and return once it is done."""
    if job.in_driver:
        with following(job), fitting_counted(job), workers.without_group():
            _train_works({"job_folder": job.folder.address})
        return
    workers.join(job.workers)
    # Ray's own files; cleared at the end, so that a later group of this name starts anew instead of resuming it.
    storage = job.place.within("ray/train")
    threading.Thread(target=_end_at_error, args=(job,), name="error", daemon=True).start()
    # Before MLflow, which then loads while the group starts.
    workers.load()
    with following(job), nodes.watching(job.workers, job.folder.add_node), fitting_counted(job):
        workers.run_group(
            _train_works, {"job_folder": job.folder.address}, workers=job.workers, name=job.key, storage=storage.address
        )
    storage.within(job.key).clear()


def _train_works(config: Mapping[str, Any]) -> None:
    # In a member. Only there: a driver with a group hands the function on, and needs no network for that.
    from flows.job.training.member import train_works

    train_works(config)


def _end_at_error(job: Job) -> None:
    # Ray would start a group that failed for good again, only to see it return at once. The end of its driver ends it.
    while True:
        with suppress(Unreachable):
            if job.folder.has_failed():
                os._exit(1)
        time.sleep(job.place.look_seconds)


def _score(job: Job) -> JobOutcome:
    from flows.job.holdout import scoring

    return scoring.score(job)


def _find_leaks(job: Job) -> JobOutcome:
    from flows.job.holdout import leaks

    return leaks.search(job)


def _measure_robustness(job: Job) -> JobOutcome:
    from flows.job.holdout import robustness

    return robustness.measure(job)


# Functions, not modules: a training loads nothing of the scoring, and the other way round.
PROGRAMS = {"train": _train, "score": _score, "fresh": _score, "leaks": _find_leaks, "robustness": _measure_robustness}


def main(job_file: str, option: str = "") -> int:
    """Do the job of a file, by its path or address; with the option `--stay`, those too that this process is handed after it.

    With `--wait` there is no such file yet, and it is handed the first as well.

    The exit status is 0 if each outcome was written, 1 if an error was, which ends it. A storage that is away for long is no
    error of the job: it ends with 1 and without a word there, and is submitted again.
    """
    temporary_folders.sweep()
    if option == "--wait":
        job_file = _wait_for_first(_folder_of(job_file))
    while job_file:
        folder = _folder_of(job_file)
        if status := _do(folder):
            return status
        job_file = _wait_for_next(folder) if option else ""
    return 0


def _do(folder: JobFolder) -> int:
    try:
        job = read_job(folder)
        folder.count_driver()
        machine.check_expected(os.environ)
        with temporary_folders.temporaries("work"):
            outcome = PROGRAMS[job.kind](job)
    except Exception as error:
        traceback.print_exc()
        if not isinstance(error, Unreachable):
            folder.write_error(error)
        return 1
    folder.write_outcome(outcome)
    return 0


def _folder_of(job_file: str) -> JobFolder:
    return JobFolder.at(job_file.rpartition("/")[0])


def _wait_for_first(folder: JobFolder) -> str:
    """As `_wait_for_next`, of a driver without a job, whose folder then goes; what a training loads is loaded before."""
    workers.load()
    job_file = _wait_for_next(folder)
    with suppress(Unreachable):
        folder.place.clear()
    return job_file


def _wait_for_next(folder: JobFolder) -> str:
    """The file of the job that this driver is handed after the one in the folder, '' if it is to end, or is told nothing."""
    end_at = time.monotonic() + STAY_SECONDS
    with suppress(Unreachable):
        while time.monotonic() < end_at:
            if (job_file := folder.read_next()) is not None:
                return job_file
            time.sleep(min(1.0, folder.place.look_seconds))
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
