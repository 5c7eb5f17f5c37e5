"""One variant's training: its state, and what happens to it at a batch, at an epoch's end, at a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from heads.data.loading import Batch, Loaders
from heads.distributed import average_statistics, rank, synchronise_gradients, synchronising
from heads.errors import CheckpointError
from heads.model.freezing import apply_phase, parameter_groups
from heads.model.model import Model
from heads.model.precision import autocast, place_model
from heads.phases import Phase, compile_policy, phase_number
from heads.spec import Variant
from heads.tasks.table import TASKS
from heads.training import checkpoint
from heads.training.adaptive import AdaptiveFreezing, Movements
from heads.training.ema import EMA
from heads.training.history import History
from heads.training.loss_weighting import LossWeighting
from heads.training.metrics import (
    EpochTotals,
    MetricAccumulator,
    check_finite,
    confusions,
    epoch_score,
    named_measures,
    train_measures,
)
from heads.training.metrics import temperatures as fitted_temperatures
from heads.training.metrics import thresholds as tuned_thresholds
from heads.training.mixup import draw_mix
from heads.training.optimizer import build_optimizer, build_scaler, lay_out_state, update_weights
from heads.training.random_state import seed_streams
from heads.training.schedule import rate_factors
from heads.training.state import Best, Epoch, TrainingOutcome, TrainingState, put_back, weights_of


class Training:
    """One variant's training: model, optimizer, schedule, measures. `loaders` gives the loaders of a phase.

    `backbone_is_ready` if another training has placed and frozen the same backbone: to look at it again takes milliseconds.
    """

    def __init__(
        self, model: Model, variant: Variant, loaders: Callable[[Phase], Loaders], *, backbone_is_ready: bool = False
    ) -> None:
        self.variant, self._loaders = variant, loaders
        # Adaptive freezing adds to `phases`; the rate, its warm-up and patience go by the policy's own.
        self.policy = compile_policy(variant)
        self.phases = list(self.policy)
        self.loaders = loaders(self.policy[0])
        self.device, dataset = self.loaders.train.device, self.loaders.train.dataset
        place_model(model.heads if backbone_is_ready else model, self.device, channels_last=variant.fit.channels_last)
        self.model = model
        occurrences = {target: dataset.occurrences(target) for target in model.targets}
        self.criteria = {
            target: TASKS[model.tasks[target]].criterion_of(variant.fit, counts, num_samples, self.device)
            for target, (counts, num_samples) in occurrences.items()
        }
        for target, (counts, num_samples) in occurrences.items():
            TASKS[model.tasks[target]].start_head(model.heads[model.head_keys[target]], variant.fit, counts, num_samples)
        self.balance = LossWeighting(
            model.targets,
            learned=variant.fit.head_weights == "uncertainty",
            fixed={head.target: head.weight for head in variant.heads},
        ).to(self.device)
        self.scaler = build_scaler(variant.fit, self.device)
        self.adaptive = AdaptiveFreezing(variant.stages) if variant.freeze == "adaptive" else None
        # Stages that no phase thaws never change: they are neither copied nor saved.
        num_fixed = 0 if self.adaptive else min(phase.num_frozen_stages for phase in self.policy)
        self._fixed = tuple(f"backbone.{name}." for name in variant.stages[:num_fixed])
        self.average = EMA(self.model, variant.fit.ema) if variant.fit.ema else None
        self.history = History(variant.fit, self.policy[-1])
        self.optimizer: torch.optim.Optimizer
        self.phase = -1
        self.is_compiled: bool | None = None
        self._enter(0, backbone_is_ready)

    @property
    def kept(self) -> Model:
        """What is evaluated, and kept if it is the best: the running average of the weights, if there is one."""
        return self.average.model if self.average else self.model

    def begin_epoch(self, num_together: int = 1) -> None:
        """Makes ready for the next epoch: its batches of `loaders.train` go to `train_on`, then `loaders.val`'s to `validate_on`.

        The epoch's seconds are shared equally by `num_together` trainings.
        """
        self._start, self._num_together, self.index = perf_counter(), num_together, len(self.history.epochs)
        phase = phase_number(self.phases, self.index)
        if phase != self.phase:
            self._enter(phase)
        policy, num_updates = self.policy[phase_number(self.policy, self.index)], self.loaders.train.num_updates
        self.rate_factors = rate_factors(self.variant.fit, policy, self.index, num_updates, self.history.scores)
        # Seeded anew each epoch, so that dropout after a resume is what it would have been.
        seed_streams((self.variant.fit.seed * 1_000_003 + self.index) * 1_009 + rank(), self.device)
        self._movements = Movements(self.model) if self.adaptive else None
        self.trained = MetricAccumulator(self.model.tasks, self.criteria)
        self.measured = MetricAccumulator(self.model.tasks, keeps_scores=True)
        if not self.model.training:
            self.model.train()

    def train_on(self, number: int, batch: Batch) -> None:
        """Trains on the epoch's batch of this number."""
        mix = draw_mix(self.variant.fit, batch.inputs.features, epoch=self.index, step=number)
        inputs = mix.inputs(batch.inputs) if mix else batch.inputs
        with synchronising(self.forward, now=batch.updates):
            with autocast(self.device, self.variant.fit.precision):
                logits = self.forward(inputs)
            sums = self.trained.add(logits, batch.labels, batch.weights, mix)
            loss = self.balance(sums, batch.num_labels, updates=batch.updates)
            self.scaler.scale(loss).backward()
        if batch.updates:
            self.update(number // self.variant.fit.accumulate)

    def update(self, number: int) -> None:
        """Makes the epoch's update of this number from the weights' gradients."""
        self.set_rates(number)
        # Before gradients are unscaled, so that an overflow on one rank skips the update on all.
        self.balance.average_gradients()
        update_weights(self.optimizer, self.scaler, self.variant.fit.gradient_clip)
        self.follow_up(number)

    def set_rates(self, number: int) -> None:
        """Sets the learning rates of the epoch's update of this number."""
        factor = self.rate_factors[number]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def follow_up(self, number: int) -> None:
        """Takes the weights after the epoch's update of this number into their running average."""
        if self.average:
            self.average.update(self.index * self.loaders.train.num_updates + number)

    def end_training(self) -> None:
        """Makes ready for validation, after the epoch's last training batch; every rank must call it."""
        average_statistics(self.model)
        if self.average:
            self.average.synchronise(self.model)
        self.kept.eval()

    def validate_on(self, batch: Batch) -> None:
        """Takes a validation batch into the epoch's measures."""
        with torch.no_grad(), autocast(self.device, self.variant.fit.precision):
            logits = self.kept(batch.inputs)
        self.measured.add(logits, batch.labels, batch.weights)

    def totals(self) -> EpochTotals:
        """The epoch's totals of training and of validation; every rank must call it."""
        return self.trained.totals(), self.measured.totals()

    def end_epoch(self, totals: EpochTotals) -> Epoch:
        """The finished epoch of these totals. Raises TrainingDiverged if a loss is not finite; every rank must call it."""
        (trained, measured), phase = totals, self.phases[self.phase]
        for of_pass in totals:
            check_finite(self.variant.fit, self.index, of_pass)
        epoch = Epoch(
            index=self.index,
            phase=self.phase,
            metrics=train_measures(trained)
            | {f"train/{target}/head_weight": x for target, x in self.balance.weights().items()}
            | {f"val/{name}": x for name, x in named_measures(measured).items()},
            seconds=(perf_counter() - self._start) / self._num_together,
            num_forwarded=self.loaders.train.num_forwarded + self.loaders.val.num_forwarded,
            score=epoch_score(measured),
            learning_rate=self.rate_factors[-1] * self.variant.fit.learning_rate,
            num_frozen_stages=phase.num_frozen_stages,
            is_compiled=self.is_compiled,
            movements=self._movements.measure() if self._movements else (),
        )

        def keep() -> Best:
            # Heads stay on their device: to fetch each of many from a GPU takes long.
            weights = weights_of(self.kept, self._fixed, self.device if len(self._fixed) == self.variant.num_stages else "cpu")
            return Best(self.index, confusions(measured), tuned_thresholds(measured), weights, fitted_temperatures(measured))

        return self.history.add(epoch, keep, self._decide)

    def save(self, path: Path) -> None:
        """Writes a checkpoint of the state after the last epoch."""
        state = TrainingState(
            epochs=tuple(self.history.epochs),
            best=self.history.best,
            model=weights_of(self.model, leaving_out=self._fixed),
            optimizer=self.optimizer.state_dict(),
            balance=weights_of(self.balance),
            average=weights_of(self.average.model, leaving_out=self._fixed) if self.average else None,
            scaler=self.scaler.state_dict(),
        )
        checkpoint.save(path, self.variant, state)

    def restore(self, path: Path) -> None:
        """Goes back to a checkpoint. Raises CheckpointError if it is not of this variant and its classes."""
        state = checkpoint.load(path, self.variant)
        for epoch in state.epochs:
            self._decide(epoch)
        self._enter(state.epochs[-1].phase)
        try:
            put_back(self.model, state.model, leaving_out=self._fixed)
            self.balance.load_state_dict(state.balance)
            self.optimizer.load_state_dict(state.optimizer)
            lay_out_state(self.optimizer)
            self.scaler.load_state_dict(state.scaler or self.scaler.state_dict())
            if self.average:
                put_back(self.average.model, state.average or state.model, leaving_out=self._fixed)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not fit the model, whose classes may have changed; train without it: {error}"
            ) from error
        self.history.go_back(state.epochs, state.best)

    def finish(self, ended: str | None = None) -> TrainingOutcome:
        """The outcome, with the best epoch's weights in the model; `ended` says why a training ends before its own end."""
        put_back(self.model, self.history.best.weights, leaving_out=self._fixed)
        self.model.eval()
        return self.history.outcome(ended)

    def _decide(self, epoch: Epoch) -> tuple[str, ...]:
        """Adaptive freezing's decisions after an epoch; if there are any, a new phase begins."""
        if not self.adaptive:
            return ()
        decisions = self.adaptive.decide(epoch.index, epoch.movements, epoch.score)
        if decisions:
            first = epoch.index + 1
            self.phases.append(Phase(first, self.variant.fit.epochs - first, self.adaptive.num_frozen))
        return decisions

    def _enter(self, phase: int, backbone_is_ready: bool = False) -> None:
        # Stages that adaptive freezing leaves as they are keep their optimizer state.
        known = self.optimizer.state if self.adaptive and self.phase >= 0 else {}
        self.phase, self.loaders = phase, self._loaders(self.phases[phase])
        apply_phase(self.model, self.phases[phase], backbone_is_ready=backbone_is_ready)
        if self.average:
            self.average.follow(self.model)
        groups = parameter_groups(self.model, self.phases[phase], self.variant.fit)
        assert groups, "heads always have weights"
        if noises := list(self.balance.parameters()):
            groups.append({"params": noises, "lr": self.variant.fit.learning_rate, "weight_decay": 0.0})
        self.optimizer = build_optimizer(self.variant.fit, groups)
        self.optimizer.state.update({p: known[p] for group in groups for p in group["params"] if p in known})
        self.rates = [group["lr"] for group in groups]
        # The last phase's wrapper hooks into the same parameters: it has to go before the next one comes.
        self.forward: nn.Module = self.model
        self.forward = synchronise_gradients(self.model, self.device)
