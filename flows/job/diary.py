"""What a work that trains beside others leaves behind on the way: its progress, and checkpoints to go on from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from flows.job import keeping
from flows.job.order import Job
from flows.records import Work
from heads import loop
from heads.errors import CheckpointError
from heads.loop import Loaders, Member

LOG = logging.getLogger(__name__)
# An epoch of features takes milliseconds, and a file that is surely on the disk as many.
PROGRESS_SECONDS = 2.0
# What a kill may cost.
CHECKPOINT_SECONDS = 30.0


class Diary:
    """Of one work, from where its last checkpoint left it."""

    def __init__(self, job: Job, work: Work) -> None:
        self._job, self._work = job, work
        self._told: list[loop.Epoch] = []
        self._written_at, self._saved_at = 0.0, monotonic()

    @property
    def last(self) -> Path | None:
        """The file of the last checkpoint, if there is one."""
        file = keeping.checkpoint_file(self._job, self._work)
        return file if file.is_file() else None

    def note(self, epoch: loop.Epoch, save: Callable[[Path], None]) -> None:
        """Takes in an epoch, and writes down what is due."""
        self._told.append(epoch)
        saves = monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        if saves or monotonic() - self._written_at >= PROGRESS_SECONDS:
            self.write()
        if saves:
            save(keeping.checkpoint_file(self._job, self._work))
            self._saved_at = monotonic()

    def write(self) -> None:
        """Writes the epochs so far for those who follow."""
        keeping.write_progress(self._job, self._work, self._told)
        self._written_at = monotonic()


def train_together(job: Job, works: Sequence[Work], member: Callable[[Work], Member], loaders: Loaders) -> None:
    """Trains the works' members side by side, each from its last checkpoint; ones that cannot be read are left aside."""
    try:
        loop.train_together([member(work) for work in works], loaders)
    except CheckpointError as error:
        # Written by another version, or damaged: what they save is time, and the training gives the same without them.
        LOG.warning("checkpoints of works that train together are left aside: %s", error)
        for work in works:
            keeping.checkpoint_file(job, work).unlink(missing_ok=True)
        loop.train_together([member(work) for work in works], loaders)
