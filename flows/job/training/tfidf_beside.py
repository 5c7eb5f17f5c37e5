"""TF-IDF of a job's texts, fitted by its driver while the workers start and train: it needs no device, and none waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flows import objects, owners
from flows.baselines import BaselineFolder
from flows.job.job import Job


@contextmanager
def fitting_tfidf(job: Job) -> Iterator[None]:
    """Fit the TF-IDF that a training asks for, unless one is there, while the block trains; the block's end waits for it."""
    if not job.tfidf or BaselineFolder.of(job.storage, job.tfidf).is_finished():
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="tfidf") as pool:
        fitted = pool.submit(_fit, job)
        yield
        fitted.result()


def _fit(job: Job) -> None:
    # In the thread: both load torch, which the driver's other threads need not wait for.
    from flows.job.datasets import Splits
    from flows.job.training.baseline import fit_tfidf

    if job.in_driver:
        # The training, in this process, counts what both fetch.
        fit_tfidf(Splits(job))
        return
    with owners.scratch("tfidf") as scratch, objects.counting(scratch):
        fit_tfidf(Splits(job))
        job.folder.write_fetched(objects.num_fetched())
