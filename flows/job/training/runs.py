"""Keeps MLflow's runs in step with a training, from a thread whose errors never reach the training."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import partial

from flows.job.job import Job
from flows.work_folder import works_root

LOG = logging.getLogger(__name__)
# A run with its pictures and its bundle takes a second or two; MLflow may be slow.
MOST_SECONDS_FOR_ONE_RUN = 20.0
# A training in the driver is over by then, or long enough to be looked at: the flow, which has MLflow loaded, logs a short one.
SHORT_SECONDS = 15.0


@contextlib.contextmanager
def following(job: Job) -> Iterator[None]:
    """Log the works' runs to MLflow while the block trains; what is left then, the flow logs beside the scoring."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(job, ended), name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # The flow goes on with the runs, and two that log one would log it twice.
        thread.join(MOST_SECONDS_FOR_ONE_RUN)
        if thread.is_alive():
            LOG.warning("a run is still being logged after %.0f s; it may be logged twice", MOST_SECONDS_FOR_ONE_RUN)


def _follow(job: Job, ended: threading.Event) -> None:
    if job.tracking is None or (job.in_driver and ended.wait(SHORT_SECONDS)):
        return
    try:
        from flows import tracking
        from flows.pictures import draw_variant

        asked, works = job.tracking, works_root(job.storage)
        tracker = tracking.Tracker(asked.address, asked.artifacts, asked.name)
        runs = tracking.VariantRuns(tracker, asked.parent, job.works, works, tracking.Origin(**asked.origin))
        every_seconds = max(1.0, job.place.look_seconds)
        runs.follow(partial(draw_variant, works=works), ended, every_seconds, partial(_stamps, job))
    except Exception as error:
        LOG.warning("the runs are not followed, the training goes on: %s", error)


def _stamps(job: Job) -> dict[str, str]:
    return {key: fact.stamp for key, fact in job.folder.epochs().items()}
