"""Writing what a work leaves on disk: its epochs so far, its bundle and result, or why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from flows.job.costs import costs_of
from flows.job.datasets import Splits
from flows.job.job import Job
from flows.job.training.examples import save_examples
from flows.records import Work
from flows.work_folder import BUNDLE
from flows.work_records import EpochRecord, WorkFailure, WorkResult
from heads import bundle
from heads.data.modalities import preprocess_of
from heads.errors import TrainingDiverged
from heads.model.model import Model, count_parameters
from heads.tasks.table import TASKS
from heads.training.state import Epoch, TrainingOutcome


def epoch_record(epoch: Epoch) -> EpochRecord:
    """An epoch of the training as a record for the work's folder."""
    return EpochRecord(
        epoch=epoch.index,
        phase=epoch.phase,
        metrics=epoch.metrics,
        seconds=epoch.seconds,
        num_frozen_stages=epoch.num_frozen_stages,
        is_compiled=epoch.is_compiled,
        decisions=epoch.decisions,
        ended=epoch.ended,
    )


def write_progress(job: Job, work: Work, epochs: Sequence[Epoch]) -> None:
    """Add epochs to the progress of a work."""
    job.work_folder(work).add_progress(work.key, [epoch_record(epoch) for epoch in epochs])
    job.folder.note_epochs(work.key, epochs[-1].index + 1 if epochs else 0)


def write_result(
    job: Job, work: Work, model: Model, outcome: TrainingOutcome, shared: bundle.SharedBackbone | None = None
) -> None:
    """Store the work's bundle and then its result, which marks the work as finished; see `bundle.save` on `shared`."""
    folder, variant = job.work_folder(work), work.variant
    num_parameters, num_trained = count_parameters(model)
    classes = {head.target: list(job.classes[head.target]) for head in variant.heads}
    facts = {
        "name": job.name,
        "work_key": work.key,
        "variant_id": variant.variant_id,
        "weights": work.weights.digest,
        "data_version": job.version.digest,
        "data_revision": job.version.revision,
        "metrics": outcome.metrics,
    }
    with folder.filling() as local:
        bundle.save(
            local / BUNDLE,
            model=model,
            variant=variant,
            classes=classes,
            preprocess=preprocess_of(variant),
            facts=facts,
            thresholds=outcome.thresholds,
            temperatures=outcome.temperatures,
            vocabulary=Splits(job).vocabulary(variant, work.weights.path),
            shared=shared,
        )
        examples = tuple(save_examples(local, local / BUNDLE, job.version, variant.heads))
    result = WorkResult(
        work_key=work.key,
        variant=variant.model_dump(mode="json"),
        metrics=dict(outcome.metrics) | _class_measures(work, outcome, classes),
        num_parameters=num_parameters,
        num_trained_parameters=num_trained,
        **asdict(costs_of(job, work, outcome)),
        best_epoch=outcome.best_epoch,
        ended=outcome.ended,
        epochs=tuple(epoch_record(epoch) for epoch in outcome.epochs),
        confusion=outcome.confusion,
        classes=classes,
        examples=examples,
    )
    folder.write_result(result)
    job.folder.note_epochs(work.key, variant.fit.epochs, ended=True)
    folder.drop_probe_checkpoint()
    folder.drop_checkpoint()


def write_failure(job: Job, work: Work, error: TrainingDiverged) -> None:
    """Write why the work failed for good, with the epochs that it had."""
    folder = job.work_folder(work)
    folder.write_failure(WorkFailure(work.key, str(error), folder.read_progress()))
    job.folder.note_epochs(work.key, work.variant.fit.epochs, ended=True)
    folder.drop_checkpoint()


def _class_measures(work: Work, outcome: TrainingOutcome, classes: dict[str, list[str]]) -> dict[str, float]:
    """Validation measures of single classes, by the names that they have on the holdout."""
    return {
        f"val/{head.target}/{name}": value
        for head in work.variant.heads
        if head.target in outcome.confusion
        for name, value in TASKS[head.task].class_measures(outcome.confusion[head.target], classes[head.target]).items()
    }
