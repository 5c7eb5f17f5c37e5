"""The epochs of one variant's training: from samples or stored features, from the start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from heads.data.loading import Loaders, SampleLoader
from heads.data.samples import Samples
from heads.distributed import single_process
from heads.model.model import Model
from heads.phases import Phase
from heads.spec import Variant
from heads.training.compile_payback import CompileRecords
from heads.training.compiling import training_of
from heads.training.session import Training
from heads.training.state import Epoch, TrainingOutcome


def train(
    model: Model,
    variant: Variant,
    train_set: Samples,
    val_set: Samples,
    *,
    device: torch.device | str,
    resume: Path | None = None,
    on_epoch: Callable[[Epoch, Callable[[Path], None]], None],
    num_loader_workers: int | None = None,
    stored: Mapping[Phase, Loaders] | None = None,
    compile_records: CompileRecords | None = None,
) -> TrainingOutcome:
    """Trains `model` in place, leaves the best epoch's weights in it, and gives the outcome.

    Best is the highest mean of the targets' primary validation measures (accuracy of classes, average precision of label
    sets, mean IoU of masks), then the lowest validation loss. `train/loss` is what the fit settings minimise, a validation
    loss always the plain cross entropy, so that variants compare. Phases in `stored` read features of their frozen trunk
    there, the others samples. Runs alike in every process of an initialised torch.distributed group, else in this one alone.
    After each epoch `on_epoch` is called on every rank with the epoch and a function that saves a checkpoint to a file;
    `resume` is such a file, and going on from it gives what an uninterrupted training gives: bit for bit on CPUs of one kind,
    with as many threads. Early stopping (`fit.patience`) counts epochs of the last phase only. With `fit.compile` steps run
    compiled where that pays, by `compile_records` of this machine, which the checkpoint remembers, and results hold to rounding.
    Raises TrainingDiverged, on every rank alike, if the loss is no longer finite, and CheckpointError if the checkpoint is not
    this variant's.
    """
    samples: list[Loaders] = []

    def loaders(phase: Phase) -> Loaders:
        if stored and phase in stored:
            return stored[phase]
        if not samples:
            samples.append(sample_loaders(variant, train_set, val_set, torch.device(device), num_loader_workers))
        return samples[0]

    training = training_of(model, variant, loaders, compile_records)
    if resume:
        training.restore(resume)
    while not training.history.ended:
        training.begin_epoch()
        training.loaders.train.set_epoch(training.index, variant.fit.seed)
        for number, batch in enumerate(training.loaders.train):
            training.train_on(number, batch)
        training.end_training()
        for batch in training.loaders.val:
            training.validate_on(batch)
        on_epoch(training.end_epoch(training.totals()), training.save)
    return training.finish()


def sample_loaders(
    variant: Variant, train_set: Samples, val_set: Samples, device: torch.device, num_workers: int | None = None
) -> Loaders:
    """The loaders of a phase that reads the samples themselves."""
    fit = variant.fit
    load = partial(
        SampleLoader, batch_size=fit.batch_size, device=device, num_workers=num_workers, channels_last=fit.channels_last
    )
    return Loaders(load(train_set, training=True, accumulate=fit.accumulate), load(val_set))


def conclude(model: Model, variant: Variant, loaders: Loaders, resume: Path, ended: str) -> TrainingOutcome:
    """The outcome of a training that is ended at the checkpoint `resume`, for the reason `ended`; leaves the best weights in
    `model`."""
    with single_process():
        training = Training(model, variant, lambda _: loaders)
        training.restore(resume)
        return training.finish(ended)
