"""`python -m flows.job JOBFILE`, in a cluster: does the job, and leaves what it brings home or its error beside its file.

This process is the job's driver: for a training it begins a worker group, whose members do the work (`flows.job.member`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from flows import owners
from flows.cluster import workers
from flows.job.job import Job, read
from flows.job.job_folder import JobFolder, JobOutcome
from flows.job.runs import following


def _train(job: Job) -> JobOutcome:
    """The outcome of a training job, every work finished or failed for good."""
    folder, folders = job.folder, {work.key: job.work_folder(work) for work in job.works}
    todo = folder.read_todo()
    if todo is None:
        todo = tuple(key for key, each in folders.items() if not each.is_finished())
        folder.write_todo(todo)
    if not all(each.is_finished() for each in folders.values()):
        _run_group(job)
    span, found = folder.read_span(), [folders[key].read_result() for key in todo]
    return JobOutcome(
        trained=todo,
        reused=tuple(key for key in folders if key not in todo),
        num_forwarded=folder.num_stored()[0] + sum(result.num_forwarded for result in found if result),
        seconds=round(span.last - span.first, 3) if span else 0.0,
    )


def _run_group(job: Job) -> None:
    """Return once a worker group has trained what is left."""
    from flows.job.member import train_works

    job.folder.count_driver()
    workers.join(job.workers)
    storage = job.storage / "ray" / "train"
    threading.Thread(target=_end_at_error, args=(job,), name="error", daemon=True).start()
    with following(job):
        workers.run_group(train_works, {"job_folder": str(job.folder.path)}, workers=job.workers, name=job.key, storage=storage)
    workers.forget_group(job.key, storage)


def _end_at_error(job: Job) -> None:
    # A group that failed for good would be started again only to return at once: with its driver, it ends now.
    while not job.folder.has_failed():
        time.sleep(0.5)
    os._exit(1)


def _score(job: Job) -> JobOutcome:
    from flows.job import scoring

    return scoring.score(job)


# Each loads its own part only.
PROGRAMS = {"train": _train, "score": _score}


def main(job_file: Path) -> int:
    """The exit status: 0 with the outcome written, 1 with the error."""
    job = read(JobFolder(job_file.parent))
    owners.sweep()
    try:
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
