"""Epochs over one variant: training, its best epoch, and going on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from heads import checkpoint
from heads.balancing import Balance
from heads.checkpoint import Best, Epoch, Progress, weights_of
from heads.classification import criterion_of
from heads.errors import HeadsError
from heads.evaluation import Confusion, autocast, confusions, evaluate, measure, named_measures, place_model, predict_table
from heads.freezing import apply_phase, compile_policy, optimiser_groups
from heads.images import ImageDataset
from heads.mixing import draw_mix
from heads.model import Model
from heads.ranks import average_statistics, rank, synchronise_gradients
from heads.sampling import StepLoader
from heads.spec import Variant
from heads.tally import Tally, Total

__all__ = ["Epoch", "Outcome", "evaluate", "predict_table", "train"]

MAX_GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.1
MAX_WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Outcome:
    """A finished training: every epoch, and measures and validation confusions (true, predicted) of the best one."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    confusion: Confusion
    num_forwarded: int
    stopped_early: bool


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

    Best is the highest mean of the targets' validation accuracies, then the lowest validation loss. `train/loss` is what
    the fit settings minimise, a validation loss always the plain cross entropy, so that variants compare. Runs alike in every
    process of an initialised torch.distributed group, else in this one alone. After each epoch `on_epoch` is called on
    every rank with the epoch and a function that saves a checkpoint to a file; `resume` is such a file, and going on
    from it gives what an uninterrupted training gives, on a CPU bit for bit. Early stopping (`fit.patience`) counts
    epochs of the last phase only. Raises HeadsError where the loss is no number any more, or the checkpoint is not
    this variant's.
    """
    place, size = torch.device(device), variant.fit.batch_size
    train_loader = StepLoader(train_set, size, place, training=True, num_workers=num_loader_workers)
    val_loader = StepLoader(val_set, size, place, num_workers=num_loader_workers)
    training = _Training(model, variant, train_loader, val_loader)
    if resume:
        training.restore(resume)
    while not training.is_finished:
        on_epoch(training.run_epoch(), training.save)
    return training.finish()


class _Training:
    """A variant's training between two epochs."""

    def __init__(self, model: Model, variant: Variant, train_loader: StepLoader, val_loader: StepLoader) -> None:
        self.variant, self.train_loader, self.val_loader = variant, train_loader, val_loader
        self.device = train_loader.device
        self.model = place_model(model, self.device)
        self.phases = compile_policy(variant)
        labels = train_loader.dataset.labels
        self.criteria = {target: criterion_of(variant.fit, column, self.device) for target, column in labels.items()}
        self.balance = Balance(model.targets, learned=variant.fit.head_weights == "uncertainty").to(self.device)
        self.epochs: list[Epoch] = []
        self.best: Best | None = None
        self._enter(0)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the last phase has brought nothing better for `patience` epochs."""
        patience = self.variant.fit.patience
        if len(self.epochs) >= self.variant.fit.epochs or not patience or self.best is None:
            return len(self.epochs) >= self.variant.fit.epochs
        since = max(self.best.index + 1, self.phases[-1].first_epoch)
        return len(self.epochs) - since >= patience

    def run_epoch(self) -> Epoch:
        """The next epoch, trained and validated."""
        start, index = perf_counter(), len(self.epochs)
        phase = max(number for number, phase in enumerate(self.phases) if phase.first_epoch <= index)
        if phase != self.phase:
            self._enter(phase)
        # Drawn anew each epoch, so that dropout after a resume is what it would have been.
        torch.manual_seed((self.variant.fit.seed * 1_000_003 + index) * 1_009 + rank())
        self.train_loader.set_epoch(index, self.variant.fit.seed)
        trained = self._train_epoch(index)
        measured = measure(self.model, self.val_loader, self.variant.fit.precision)
        for totals in (trained, measured):
            self._check_finite(index, totals)
        epoch = Epoch(
            index=index,
            phase=phase,
            metrics=_train_metrics(trained)
            | {f"train/{target}/head_weight": x for target, x in self.balance.weights().items()}
            | {f"val/{name}": x for name, x in named_measures(measured).items()},
            seconds=perf_counter() - start,
            num_forwarded=len(self.train_loader.dataset) + len(self.val_loader.dataset),
            learning_rate=self._rate_factor(index, len(self.train_loader) - 1) * self.variant.fit.learning_rate,
        )
        self.epochs.append(epoch)
        if self.best is None or _score(epoch) > _score(self.epochs[self.best.index]):
            self.best = Best(index, confusions(measured), weights_of(self.model))
        return epoch

    def save(self, path: Path) -> None:
        """Writes a checkpoint of what the last epoch left."""
        assert self.best is not None
        progress = Progress(
            tuple(self.epochs), self.best, weights_of(self.model), self.optimiser.state_dict(), weights_of(self.balance)
        )
        checkpoint.save(path, self.variant, progress)

    def restore(self, path: Path) -> None:
        """Goes back to a checkpoint. Raises HeadsError where it is not of this variant and its classes."""
        progress = checkpoint.load(path, self.variant)
        self._enter(progress.epochs[-1].phase)
        try:
            self.model.load_state_dict(progress.model)
            self.balance.load_state_dict(progress.balance)
            self.optimiser.load_state_dict(progress.optimiser)
        except (RuntimeError, ValueError, KeyError) as error:
            raise HeadsError(
                f"{path} does not fit the model, whose classes may have changed; train without it: {error}"
            ) from error
        self.epochs, self.best = list(progress.epochs), progress.best

    def finish(self) -> Outcome:
        """The outcome, with the best epoch's weights in the model."""
        assert self.best is not None
        self.model.load_state_dict(self.best.weights)
        self.model.eval()
        return Outcome(
            epochs=tuple(self.epochs),
            best_epoch=self.best.index,
            metrics=self.epochs[self.best.index].metrics,
            confusion=self.best.confusion,
            num_forwarded=sum(epoch.num_forwarded for epoch in self.epochs),
            stopped_early=len(self.epochs) < self.variant.fit.epochs,
        )

    def _enter(self, phase: int) -> None:
        self.phase = phase
        apply_phase(self.model, self.phases[phase])
        groups = optimiser_groups(self.model, self.phases[phase], self.variant.fit)
        if not groups:
            raise HeadsError(f"phase {phase} of freeze policy {self.variant.freeze!r} leaves nothing to train")
        if noises := list(self.balance.parameters()):
            groups.append({"params": noises, "lr": self.variant.fit.learning_rate, "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW([dict(group) for group in groups])
        self.rates = [group["lr"] for group in groups]
        # The last phase's wrapper hooks into the same parameters: it has to go before the next one comes.
        self.forward: nn.Module = self.model
        self.forward = synchronise_gradients(self.model, self.device)

    def _train_epoch(self, index: int) -> dict[str, Total]:
        tally = Tally(self.criteria)
        self.model.train()
        for number, batch in enumerate(self.train_loader):
            factor = self._rate_factor(index, number)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            mix = draw_mix(self.variant.fit, batch.images, epoch=index, step=number)
            with autocast(self.device, self.variant.fit.precision):
                logits = self.forward(mix.images(batch.images) if mix else batch.images)
            self.optimiser.zero_grad(set_to_none=True)
            self.balance(tally.add(logits, batch.labels, batch.weights, mix), batch.num_labels).backward()
            self.balance.average_gradients()
            clip_grad_norm_((p for group in self.optimiser.param_groups for p in group["params"]), MAX_GRADIENT_NORM)
            self.optimiser.step()
        average_statistics(self.model)
        return tally.totals()

    def _rate_factor(self, epoch: int, step: int) -> float:
        """A cosine over all epochs, times a short linear warm-up where a phase begins: new parameters, a new optimiser."""
        num_steps, phase = len(self.train_loader), self.phases[self.phase]
        position = epoch * num_steps + step
        warm_up = min(MAX_WARM_UP_STEPS, math.ceil(phase.num_epochs * num_steps * WARM_UP_SHARE))
        ramp = min(1.0, (position - phase.first_epoch * num_steps + 1) / warm_up)
        return ramp * 0.5 * (1 + math.cos(math.pi * position / (self.variant.fit.epochs * num_steps)))

    def _check_finite(self, index: int, totals: Mapping[str, Total]) -> None:
        for target, total in totals.items():
            if not math.isfinite(total.loss_sum):
                raise HeadsError(
                    f"training diverged in epoch {index}: the loss of {target!r} is {total.loss_sum}; "
                    f"lower learning_rate, now {self.variant.fit.learning_rate:g}"
                )


def _train_metrics(totals: Mapping[str, Total]) -> dict[str, float]:
    accuracies = {f"train/{target}/accuracy": total.measures()["accuracy"] for target, total in totals.items()}
    return {"train/loss": sum(total.loss_sum / max(1, total.count) for total in totals.values()), **accuracies}


def _score(epoch: Epoch) -> tuple[float, float]:
    """What makes an epoch the best: the mean of the targets' validation accuracies, then the lower mean loss."""
    accuracies, losses = (
        [x for name, x in epoch.metrics.items() if name.startswith("val/") and name.endswith(end) and math.isfinite(x)]
        for end in ("/accuracy", "/loss")
    )
    return sum(accuracies) / max(1, len(accuracies)), -sum(losses) / max(1, len(losses))
