"""A variant's training between two epochs: what it holds, and how it goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from heads import checkpoint
from heads.adaptive import AdaptiveFreezing, Movements
from heads.averaging import Average
from heads.balancing import Balance
from heads.checkpoint import Best, Epoch, Progress, weights_of
from heads.compiling import Compiled
from heads.errors import CheckpointError, HeadsError
from heads.evaluation import Confusion, autocast, confusions, measure, named_measures, place_model
from heads.evaluation import thresholds as tuned_thresholds
from heads.freezing import Phase, apply_phase, compile_policy, optimiser_groups, phase_number
from heads.kinds import KINDS
from heads.mixing import draw_mix
from heads.model import Model
from heads.optimiser import build_optimiser, build_scaler, update_weights
from heads.ranks import average_statistics, rank, synchronise_gradients, synchronising
from heads.sampling import StepLoader
from heads.schedule import rate_factor
from heads.spec import BACKBONE_STAGES, Variant
from heads.stopping import check_finite, why_ended
from heads.tally import Tally, Total, epoch_score, train_measures


@dataclass(frozen=True)
class Outcome:
    """A finished training: every epoch, and of the best one measures, confusions (true, predicted) and thresholds by target.

    `ended` says why there were no more epochs.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    confusion: Confusion
    thresholds: dict[str, list[float]]
    num_forwarded: int
    stopped_early: bool
    ended: str


class Training:
    """A variant's training between two epochs."""

    def __init__(self, model: Model, variant: Variant, train_loader: StepLoader, val_loader: StepLoader) -> None:
        self.variant, self.train_loader, self.val_loader = variant, train_loader, val_loader
        self.device = train_loader.device
        self.model = place_model(model, self.device, channels_last=variant.fit.channels_last)
        found = {target: train_loader.dataset.occurrences(target) for target in model.targets}
        self.criteria = {
            target: KINDS[model.tasks[target]].criterion_of(variant.fit, counts, num_samples, self.device)
            for target, (counts, num_samples) in found.items()
        }
        self.balance = Balance(model.targets, learned=variant.fit.head_weights == "uncertainty").to(self.device)
        self.scaler = build_scaler(variant.fit, self.device)
        # What is decided on the way adds to `phases`; the rate, its warm-up and patience go by the policy's own.
        self.policy = compile_policy(variant)
        self.phases = list(self.policy)
        self.adaptive = AdaptiveFreezing(BACKBONE_STAGES[variant.backbone]) if variant.freeze == "adaptive" else None
        decay = variant.fit.ema
        self.average = Average(self.model, decay) if decay else None
        self.epochs: list[Epoch] = []
        self.best: Best | None = None
        self.optimiser: torch.optim.Optimizer
        self.phase = -1
        self._enter(0)

    @property
    def is_finished(self) -> bool:
        """Whether the training has ended."""
        return self._why_ended() is not None

    @property
    def kept(self) -> Model:
        """What is evaluated, and kept where it is the best: the weights' running average, where there is one."""
        return self.average.model if self.average else self.model

    def _why_ended(self) -> str | None:
        if self.best is None:
            return None
        score = self.epochs[self.best.index].score
        return why_ended(self.variant.fit, self.policy[-1], len(self.epochs), self.best.index, score)

    def run_epoch(self) -> Epoch:
        """The next epoch, trained and validated."""
        start, index = perf_counter(), len(self.epochs)
        phase = phase_number(self.phases, index)
        if phase != self.phase:
            self._enter(phase)
        # Drawn anew each epoch, so that dropout after a resume is what it would have been.
        torch.manual_seed((self.variant.fit.seed * 1_000_003 + index) * 1_009 + rank())
        self.train_loader.set_epoch(index, self.variant.fit.seed)
        movements = Movements(self.model) if self.adaptive else None
        trained = self._train_epoch(index)
        measured = measure(self.kept, self.val_loader, self.variant.fit.precision)
        for totals in (trained, measured):
            check_finite(self.variant.fit, index, totals)
        epoch = Epoch(
            index=index,
            phase=phase,
            metrics=train_measures(trained)
            | {f"train/{target}/head_weight": x for target, x in self.balance.weights().items()}
            | {f"val/{name}": x for name, x in named_measures(measured).items()},
            seconds=perf_counter() - start,
            num_forwarded=len(self.train_loader.dataset) + len(self.val_loader.dataset),
            score=epoch_score(measured),
            learning_rate=self._rate_factor(index, self.train_loader.num_updates - 1) * self.variant.fit.learning_rate,
            num_frozen_stages=self.phases[phase].num_frozen_stages,
            movements=movements.measure() if movements else (),
        )
        self.epochs.append(epoch)
        if self.best is None or epoch.score > self.epochs[self.best.index].score:
            self.best = Best(index, confusions(measured), tuned_thresholds(measured), weights_of(self.kept))
        ended = self._why_ended()
        self.epochs[-1] = replace(epoch, ended=ended, decisions=() if ended else self._decide(epoch))
        return self.epochs[-1]

    def save(self, path: Path) -> None:
        """Writes a checkpoint of what the last epoch left."""
        assert self.best is not None
        progress = Progress(
            epochs=tuple(self.epochs),
            best=self.best,
            model=weights_of(self.model),
            optimiser=self.optimiser.state_dict(),
            balance=weights_of(self.balance),
            average=weights_of(self.average.model) if self.average else None,
            scaler=self.scaler.state_dict(),
        )
        checkpoint.save(path, self.variant, progress)

    def restore(self, path: Path) -> None:
        """Goes back to a checkpoint. Raises CheckpointError where it is not of this variant and its classes."""
        progress = checkpoint.load(path, self.variant)
        for epoch in progress.epochs:
            self._decide(epoch)
        self._enter(progress.epochs[-1].phase)
        try:
            self.model.load_state_dict(progress.model)
            self.balance.load_state_dict(progress.balance)
            self.optimiser.load_state_dict(progress.optimiser)
            self.scaler.load_state_dict(progress.scaler or self.scaler.state_dict())
            if self.average:
                self.average.model.load_state_dict(progress.average or progress.model)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not fit the model, whose classes may have changed; train without it: {error}"
            ) from error
        self.epochs, self.best = list(progress.epochs), progress.best

    def finish(self) -> Outcome:
        """The outcome, with the best epoch's weights in the model."""
        assert self.best is not None
        ended = self._why_ended()
        assert ended is not None
        self.model.load_state_dict(self.best.weights)
        self.model.eval()
        return Outcome(
            epochs=tuple(self.epochs),
            best_epoch=self.best.index,
            metrics=self.epochs[self.best.index].metrics,
            confusion=self.best.confusion,
            thresholds=self.best.thresholds,
            num_forwarded=sum(epoch.num_forwarded for epoch in self.epochs),
            stopped_early=len(self.epochs) < self.variant.fit.epochs,
            ended=ended,
        )

    def _decide(self, epoch: Epoch) -> tuple[str, ...]:
        """What adaptive freezing decides after an epoch: a new phase, where it is anything."""
        if not self.adaptive:
            return ()
        decisions = self.adaptive.decide(epoch.index, epoch.movements, epoch.score)
        if decisions:
            first = epoch.index + 1
            self.phases.append(Phase(first, self.variant.fit.epochs - first, self.adaptive.num_frozen))
        return decisions

    def _enter(self, phase: int) -> None:
        # Stages that adaptive freezing leaves as they are go on with what the optimiser knows of them.
        known = self.optimiser.state if self.adaptive and self.phase >= 0 else {}
        self.phase = phase
        apply_phase(self.model, self.phases[phase])
        if self.average:
            self.average.follow(self.model)
        groups = optimiser_groups(self.model, self.phases[phase], self.variant.fit)
        if not groups:
            raise HeadsError(f"phase {phase} of freeze policy {self.variant.freeze!r} leaves nothing to train")
        if noises := list(self.balance.parameters()):
            groups.append({"params": noises, "lr": self.variant.fit.learning_rate, "weight_decay": 0.0})
        self.optimiser = build_optimiser(self.variant.fit, groups)
        self.optimiser.state.update({p: known[p] for group in groups for p in group["params"] if p in known})
        self.rates = [group["lr"] for group in groups]
        # The last phase's wrapper hooks into the same parameters: it has to go before the next one comes.
        self.forward: nn.Module = self.model
        self.forward = synchronise_gradients(Compiled(self.model) if self.variant.fit.compile else self.model, self.device)

    def _train_epoch(self, index: int) -> dict[str, Total]:
        tally = Tally(self.model.tasks, self.criteria)
        self.model.train()
        for number, batch in enumerate(self.train_loader):
            mix = draw_mix(self.variant.fit, batch.images, epoch=index, step=number)
            with synchronising(self.forward, now=batch.updates):
                with autocast(self.device, self.variant.fit.precision):
                    logits = self.forward(mix.images(batch.images) if mix else batch.images)
                sums = tally.add(logits, batch.labels, batch.weights, mix)
                loss = self.balance(sums, batch.num_labels, updates=batch.updates)
                self.scaler.scale(loss).backward()
            if batch.updates:
                self._update(index, number // self.variant.fit.accumulate)
        average_statistics(self.model)
        if self.average:
            self.average.synchronise(self.model)
        return tally.totals()

    def _update(self, epoch: int, update: int) -> None:
        factor = self._rate_factor(epoch, update)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        # Before they are unscaled: what overflowed on one rank is then skipped on all.
        self.balance.average_gradients()
        update_weights(self.optimiser, self.scaler, self.variant.fit.gradient_clip)
        if self.average:
            self.average.update(epoch * self.train_loader.num_updates + update)

    def _rate_factor(self, epoch: int, update: int) -> float:
        scores = [done.score for done in self.epochs[:epoch]]
        phase = self.policy[phase_number(self.policy, epoch)]
        return rate_factor(self.variant.fit, phase, epoch, update, self.train_loader.num_updates, scores)
