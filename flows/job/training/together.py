"""Works that train side by side in one process, each with progress and checkpoints of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from flows.compile_times import KeptCompileTimes
from flows.job.job import Job
from flows.job.training import results
from flows.job.trunks import JobFeatures
from flows.records import Work
from flows.work_folder import CHECKPOINT, PROBE_CHECKPOINT
from heads.bundle import SharedBackbone
from heads.data.loading import Loaders
from heads.errors import CheckpointError, TrainingDiverged
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import build_model
from heads.phases import Phase, compile_policy
from heads.training import checkpoint
from heads.training.state import Epoch, TrainingOutcome

LOG = logging.getLogger(__name__)
# An epoch on features takes milliseconds, and so does writing a file to disk; longer if all works' take a twentieth of it.
PROGRESS_SECONDS = 2.0
# How much training a kill may cost, beside an epoch; longer if a checkpoint takes more than a twentieth of it.
CHECKPOINT_SECONDS = 30.0
SAVE_FACTOR = 20


class WorkCheckpointer:
    """Writes one work's progress and its checkpoints, each when it is due; `num_works` train side by side."""

    def __init__(self, job: Job, work: Work, num_works: int = 1) -> None:
        self._job, self._work, self._num_works = job, work, num_works
        self._epochs: list[Epoch] = []
        self._writes_at, self._saves_at = 0.0, monotonic() + CHECKPOINT_SECONDS

    @property
    def last(self) -> Path | None:
        """The file of the last checkpoint, if there is one."""
        return self._job.work_folder(self._work).fetch_checkpoint()

    def note(self, epoch: Epoch, save: Callable[[Path], None]) -> None:
        """Take in an epoch; write the progress and a checkpoint if they are due."""
        self._epochs.append(epoch)
        saves = monotonic() >= self._saves_at
        if saves or monotonic() >= self._writes_at:
            self.write()
        if saves:
            start = monotonic()
            with self._job.work_folder(self._work).filling() as local:
                save(local / CHECKPOINT)
            self._saves_at = monotonic() + max(CHECKPOINT_SECONDS, SAVE_FACTOR * (monotonic() - start))

    def write(self) -> None:
        """Write the epochs so far, for MLflow and the flow's progress."""
        start = monotonic()
        results.write_progress(self._job, self._work, self._epochs)
        taken = monotonic() - start
        self._writes_at = monotonic() + max(PROGRESS_SECONDS, SAVE_FACTOR * self._num_works * taken)

    def give_up(self, error: TrainingDiverged) -> None:
        """Write the epochs so far, and why there are no more."""
        self.write()
        results.write_failure(self._job, self._work, error)


def train_probes(features: JobFeatures, works: Sequence[Work]) -> None:
    """Train works that read the same stored features, in this process; each work's result is written as it ends."""
    (loaders,) = _loaders(features, works[0]).values()
    _train(features, works, _whole, loaders)


def train_first_phases(features: JobFeatures, works: Sequence[Work]) -> None:
    """Train the probe phases of works that read the same stored features, in this process, without those already done."""
    left = [work for work in works if not _has_probed(features.job, work)]
    if left:
        phase = compile_policy(left[0].variant)[0]
        _train(features, left, _pausing, _loaders(features, left[0])[phase])


def _loaders(features: JobFeatures, work: Work) -> dict[Phase, Loaders]:
    return features.loaders(work, *(features.splits.open(split, work.variant, work.weights.path) for split in ("train", "val")))


def _train(
    features: JobFeatures,
    works: Sequence[Work],
    request: Callable[[Job, Work, SharedBackbone, int], TrainingRequest],
    loaders: Loaders,
) -> None:
    """Train the works side by side, each from its last checkpoint, or from the start if that cannot be read."""
    job, shared = features.job, features.shared_backbone(works[0])
    for work in works:
        file = WorkCheckpointer(job, work).last
        if file and not _can_be_resumed(file, work):
            job.work_folder(work).drop_checkpoint()
    train_together([request(job, work, shared, len(works)) for work in works], loaders)


def _can_be_resumed(file: Path, work: Work) -> bool:
    """Whether a training of the work can go on from a checkpoint; if it cannot, the log says why."""
    try:
        checkpoint.load(file, work.variant)
    except CheckpointError as error:
        # Written by another version, or damaged. A checkpoint only saves time: the training gives the same without it.
        LOG.warning("%s: its checkpoint is left aside: %s", work.key, error)
        return False
    return True


def _has_probed(job: Job, work: Work) -> bool:
    """Whether the work's probe phase is done, with a checkpoint that the work can go on from."""
    folder = job.work_folder(work)
    if folder.read_probe() is None:
        return False
    file = folder.fetch_probe_checkpoint()
    return file is not None and _can_be_resumed(file, work)


def _whole(job: Job, work: Work, shared: SharedBackbone, num_works: int) -> TrainingRequest:
    """The request for a training to its end."""
    model = build_model(work.variant, job.classes, work.weights.path, backbone=shared.backbone)
    checkpointer = WorkCheckpointer(job, work, num_works)

    def on_end(outcome: TrainingOutcome | TrainingDiverged) -> None:
        if isinstance(outcome, TrainingDiverged):
            checkpointer.give_up(outcome)
        else:
            results.write_result(job, work, model, outcome, shared)

    return TrainingRequest(
        model, work.variant, checkpointer.note, on_end, resume=checkpointer.last, compile_records=KeptCompileTimes()
    )


def _pausing(job: Job, work: Work, shared: SharedBackbone, num_works: int) -> TrainingRequest:
    """The request for a training that pauses after its probe phase, and writes the measures that it had there."""
    model = build_model(work.variant, job.classes, work.weights.path, backbone=shared.backbone)
    checkpointer, folder = WorkCheckpointer(job, work, num_works), job.work_folder(work)

    def on_pause(epochs: Sequence[Epoch], save: Callable[[Path], None]) -> None:
        with folder.filling() as local:
            save(local / PROBE_CHECKPOINT)
        checkpointer.write()
        best = max(epochs, key=lambda one: one.score)
        folder.write_probe(best.metrics)
        folder.drop_checkpoint()

    def on_end(outcome: TrainingOutcome | TrainingDiverged) -> None:
        assert isinstance(outcome, TrainingDiverged), "a probe pauses before its last epoch"
        checkpointer.give_up(outcome)

    num_epochs = compile_policy(work.variant)[0].num_epochs
    return TrainingRequest(
        model, work.variant, checkpointer.note, on_end, num_epochs, on_pause, checkpointer.last, KeptCompileTimes()
    )
