"""The baseline that counts words, fitted by a job's driver while the workers start and train: it needs no device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flows import objects, temporary_folders
from flows.baselines import BaselineFolder
from flows.job.job import Job


@contextmanager
def fitting_counted(job: Job) -> Iterator[None]:
    """Fit the baseline that counts words, if a training asks for it and none is there, while the block trains; its end waits."""
    if not job.counted or BaselineFolder.of(job.storage, job.counted).is_finished():
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="counted") as pool:
        fitted = pool.submit(_fit, job)
        yield
        fitted.result()


def _fit(job: Job) -> None:
    # In the thread: both load torch, which the driver's other threads need not wait for.
    from flows.job.datasets import Splits
    from flows.job.training.counted import fit_counted

    if job.in_driver:
        # The training, in this process, counts what both fetch.
        fit_counted(Splits(job))
        return
    with temporary_folders.scratch("counted") as scratch, objects.counting(scratch):
        fit_counted(Splits(job))
        job.folder.write_fetched(objects.num_fetched())
