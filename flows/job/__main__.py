"""`python -m flows.job JOBFILE`, on the cluster: does the job, and writes its outcome or its error beside the job file.

This process is the job's driver: for a training it begins a worker group, whose members do the work (`flows.job.member`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from flows import machine, owners
from flows.cluster import nodes, workers
from flows.job.job import Job, read
from flows.job.job_folder import JobFolder, JobOutcome
from flows.job.runs import following


def _train(job: Job) -> JobOutcome:
    """Run a training job to its end, with every work finished or failed for good."""
    folder, folders = job.folder, {work.key: job.work_folder(work) for work in job.works}
    todo = folder.read_todo()
    if todo is None:
        todo = tuple(key for key, work_folder in folders.items() if not work_folder.is_finished())
        folder.write_todo(todo)
    if not all(work_folder.is_finished() for work_folder in folders.values()):
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
    from flows.job.member import train_works

    job.folder.count_driver()
    workers.join(job.workers)
    storage = job.storage / "ray" / "train"
    threading.Thread(target=_end_at_error, args=(job,), name="error", daemon=True).start()
    with following(job), nodes.watching(job.workers, job.folder.add_node):
        workers.run_group(train_works, {"job_folder": str(job.folder.path)}, workers=job.workers, name=job.key, storage=storage)
    workers.forget_group(job.key, storage)


def _end_at_error(job: Job) -> None:
    # Ray would start a group that failed for good again, only to see it return at once. The end of its driver ends it.
    while not job.folder.has_failed():
        time.sleep(0.5)
    os._exit(1)


def _score(job: Job) -> JobOutcome:
    from flows.job import scoring

    return scoring.score(job)


def _find_leaks(job: Job) -> JobOutcome:
    from flows.job import leaks

    return leaks.search(job)


def _measure_robustness(job: Job) -> JobOutcome:
    from flows.job import robustness

    return robustness.measure(job)


# Functions, not modules: a training loads nothing of the scoring, and the other way round.
PROGRAMS = {"train": _train, "score": _score, "leaks": _find_leaks, "robustness": _measure_robustness}


def main(job_file: Path) -> int:
    """Do the job of a file; the exit status is 0 if the outcome was written, 1 if an error was."""
    job = read(JobFolder(job_file.parent))
    owners.sweep()
    try:
        machine.check_expected(os.environ)
        with owners.temporaries("work"):
            outcome = PROGRAMS[job.kind](job)
    except Exception as error:
        traceback.print_exc()
        job.folder.write_error(error)
        return 1
    job.folder.write_outcome(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
