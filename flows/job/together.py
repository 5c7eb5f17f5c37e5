"""Works that train side by side in one process, each with its progress and checkpoints to go on from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from torch import nn

from flows.job import results
from flows.job.job import Job
from flows.job.trunks import JobFeatures
from flows.records import Work
from heads.data.loading import Loaders
from heads.errors import CheckpointError, TrainingDiverged
from heads.fused.training import Member, train_together
from heads.model.model import build_model
from heads.training import checkpoint
from heads.training.state import Epoch, Outcome

LOG = logging.getLogger(__name__)
# An epoch of features takes milliseconds, and a file that is surely on the disk as many.
PROGRESS_SECONDS = 2.0
# What a kill may cost, beside an epoch; more where a checkpoint takes more than a twentieth of it.
CHECKPOINT_SECONDS = 30.0
SAVE_FACTOR = 20


class WorkCheckpointer:
    """Writes one work's progress and its checkpoints, each when it is due."""

    def __init__(self, job: Job, work: Work) -> None:
        self._job, self._work = job, work
        self._told: list[Epoch] = []
        self._written_at, self._saves_at = 0.0, monotonic() + CHECKPOINT_SECONDS

    @property
    def last(self) -> Path | None:
        """The file of the last checkpoint, if there is one."""
        file = self._job.work_folder(self._work).checkpoint
        return file if file.is_file() else None

    def note(self, epoch: Epoch, save: Callable[[Path], None]) -> None:
        """Takes in an epoch, and writes down what is due."""
        self._told.append(epoch)
        saves = monotonic() >= self._saves_at
        if saves or monotonic() - self._written_at >= PROGRESS_SECONDS:
            self.write()
        if saves:
            start = monotonic()
            save(self._job.work_folder(self._work).checkpoint)
            self._saves_at = monotonic() + max(CHECKPOINT_SECONDS, SAVE_FACTOR * (monotonic() - start))

    def write(self) -> None:
        """Writes the epochs so far for those who follow."""
        results.write_progress(self._job, self._work, self._told)
        self._written_at = monotonic()


def can_be_resumed(file: Path, work: Work) -> bool:
    """Whether a training of the work can go on from a checkpoint; the log says where it cannot, and why."""
    try:
        checkpoint.load(file, work.variant)
    except CheckpointError as error:
        # Written by another version, or damaged: what it saves is time, and the training gives the same without it.
        LOG.warning("%s: its checkpoint is left aside: %s", work.key, error)
        return False
    return True


def train_works_together(job: Job, works: Sequence[Work], member: Callable[[Work], Member], loaders: Loaders) -> None:
    """Trains the works' members side by side, each from its last checkpoint; one that cannot be read is left aside."""
    for work in works:
        file = WorkCheckpointer(job, work).last
        if file and not can_be_resumed(file, work):
            job.work_folder(work).drop_checkpoint()
    train_together([member(work) for work in works], loaders)


def train_probes(features: JobFeatures, group: Sequence[Work]) -> None:
    """Trains works that read the same stored features in this process, each kept as it ends."""
    first = group[0]
    sets = [features.splits.open(split, first.variant) for split in ("train", "val")]
    (loaders,) = features.loaders(first, *sets).values()
    train_works_together(features.job, group, partial(_member, features.job, features.backbone(first)), loaders)


def _member(job: Job, backbone: nn.Sequential, work: Work) -> Member:
    model = build_model(work.variant, job.classes, work.weights.path, backbone=backbone)
    checkpointer = WorkCheckpointer(job, work)

    def on_end(outcome: Outcome | TrainingDiverged) -> None:
        if isinstance(outcome, TrainingDiverged):
            checkpointer.write()
            results.write_failure(job, work, outcome)
        else:
            results.write_result(job, work, model, outcome)

    return Member(model, work.variant, checkpointer.note, on_end, resume=checkpointer.last)
