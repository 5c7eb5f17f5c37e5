"""A training job's driver: it begins the worker group, and brings home what that leaves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from flows.cluster import workers
from flows.job.job import Job
from flows.job.job_folder import JobOutcome
from flows.job.runs import following


def train(job: Job, train_works: Callable[[Mapping[str, Any]], None]) -> JobOutcome:
    """The outcome of a training job, every work finished or failed for good; `train_works` is what each member of the group runs.

    Runs in the job's driver.
    """
    folder, folders = job.folder, {work.key: job.work_folder(work) for work in job.works}
    todo = folder.read_todo()
    if todo is None:
        todo = tuple(key for key, each in folders.items() if not each.is_finished())
        folder.write_todo(todo)
    if not all(each.is_finished() for each in folders.values()):
        folder.count_driver()
        workers.join(job.workers)
        storage = job.storage / "ray" / "train"
        threading.Thread(target=_end_at_error, args=(job,), name="error", daemon=True).start()
        with following(job):
            workers.run_group(train_works, {"job_folder": str(folder.path)}, workers=job.workers, name=job.key, storage=storage)
        workers.forget_group(job.key, storage)
    span, found = folder.read_span(), [folders[key].read_result() for key in todo]
    return JobOutcome(
        trained=todo,
        reused=tuple(key for key in folders if key not in todo),
        num_forwarded=folder.num_stored()[0] + sum(result.num_forwarded for result in found if result),
        seconds=round(span.last - span.first, 3) if span else 0.0,
    )


def _end_at_error(job: Job) -> None:
    # A group that failed for good would be started again only to return at once: with its driver, it ends now.
    while not job.folder.has_failed():
        time.sleep(0.5)
    os._exit(1)
