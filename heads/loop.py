"""Epochs over one variant: training, its best epoch, and going on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from heads.checkpoint import Epoch
from heads.dataset import ImageDataset
from heads.evaluation import evaluate, predict_table
from heads.model import Model
from heads.sampling import StepLoader
from heads.spec import Variant
from heads.training import Outcome, Training

__all__ = ["Epoch", "Outcome", "evaluate", "predict_table", "train"]


def train(
    model: Model,
    variant: Variant,
    train_set: ImageDataset,
    val_set: ImageDataset,
    *,
    device: torch.device | str,
    resume: Path | None = None,
    on_epoch: Callable[[Epoch, Callable[[Path], None]], None],
    num_loader_workers: int | None = None,
) -> Outcome:
    """Trains `model` in place, leaves the best epoch's weights in it, and gives the outcome.

    Best is the highest mean of the targets' primary validation measures (accuracy of classes, average precision of label
    sets, mean IoU of masks), then the lowest validation loss. `train/loss` is what the fit settings minimise, a validation
    loss always the plain cross entropy, so that variants compare. Runs alike in every
    process of an initialised torch.distributed group, else in this one alone. After each epoch `on_epoch` is called on
    every rank with the epoch and a function that saves a checkpoint to a file; `resume` is such a file, and going on
    from it gives what an uninterrupted training gives, on a CPU bit for bit. Early stopping (`fit.patience`) counts
    epochs of the last phase only. Raises TrainingDiverged, on every rank alike, where the loss is no number any more, and
    CheckpointError where the checkpoint is not this variant's.
    """
    place, size = torch.device(device), variant.fit.batch_size
    accumulate, last = variant.fit.accumulate, variant.fit.channels_last
    train_loader = StepLoader(
        train_set, size, place, training=True, num_workers=num_loader_workers, accumulate=accumulate, channels_last=last
    )
    val_loader = StepLoader(val_set, size, place, num_workers=num_loader_workers, channels_last=last)
    training = Training(model, variant, train_loader, val_loader)
    if resume:
        training.restore(resume)
    while not training.is_finished:
        on_epoch(training.run_epoch(), training.save)
    return training.finish()
