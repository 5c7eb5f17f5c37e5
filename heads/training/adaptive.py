"""Adaptive freezing: which stages to freeze and thaw after an epoch, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.distributed import broadcast
from heads.model.model import Model
from heads.training.schedule import Score

# After AutoFreeze (Liu, Agarwal and Venkataraman, "AutoFreeze: Automatically Freezing Model Blocks to Accelerate
# Fine-tuning", arXiv 2102.01386, 2021): stages are judged at intervals, here epochs, by how their updates have shrunk, and
# frozen from the front only. In place of its accumulated gradients stands what they came to, the distance that the
# weights moved; in place of its percentile, which freezes something every time, a share of the stage's greatest movement.
STILL_SHARE = 1 / 3
# Thawing is ours: after this many epochs in a row that validate worse than the one after which stages were last frozen.
NUM_WORSE_EPOCHS = 2


@dataclass(frozen=True)
class _Freezing:
    num_frozen_before: int
    epoch: int
    score: Score


class AdaptiveFreezing:
    """The frozen stages of a training, decided epoch by epoch.

    They depend on the epochs given to `decide` alone, so that a resume restores them by giving the same epochs again.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = tuple(stages)
        self.num_frozen = 0
        self._most = [0.0] * len(self.stages)
        self._freezings: list[_Freezing] = []
        self._num_worse = 0

    def decide(self, epoch: int, movements: Sequence[float], score: Score) -> tuple[str, ...]:
        """The decisions after an epoch, each with its reason; `num_frozen` is then the number of frozen stages of the next one.

        `movements` is how far each stage's weights moved in the epoch, as a share of their norm.
        """
        thawed = self._thaw(epoch, score)
        decisions = thawed or self._freeze(epoch, movements, score)
        for index, moved in enumerate(movements):
            self._most[index] = max(self._most[index], moved)
        if thawed:
            # Thawed stages begin another training, so their greatest movement is measured anew.
            self._most[self.num_frozen :] = [0.0] * (len(self.stages) - self.num_frozen)
        return decisions

    def _thaw(self, epoch: int, score: Score) -> tuple[str, ...]:
        if not self._freezings:
            return ()
        last = self._freezings[-1]
        self._num_worse = self._num_worse + 1 if score < last.score else 0
        if self._num_worse < NUM_WORSE_EPOCHS:
            return ()
        names = ", ".join(self.stages[last.num_frozen_before : self.num_frozen])
        self._freezings.pop()
        self._num_worse, self.num_frozen = 0, last.num_frozen_before
        return (
            f"thaw {names} after epoch {epoch}: the last {NUM_WORSE_EPOCHS} epochs validated worse ({_words(score)}) "
            f"than epoch {last.epoch}, after which they were frozen ({_words(last.score)})",
        )

    def _freeze(self, epoch: int, movements: Sequence[float], score: Score) -> tuple[str, ...]:
        first, decisions = self.num_frozen, []
        for index in range(first, len(self.stages)):
            moved, most = movements[index], self._most[index]
            if moved > STILL_SHARE * most:
                break
            self.num_frozen = index + 1
            decisions.append(
                f"freeze {self.stages[index]} after epoch {epoch}: its weights moved by {moved:.3%} of their norm, "
                f"at most a third of the {most:.3%} that they moved in an epoch before"
            )
        if decisions:
            self._freezings.append(_Freezing(first, epoch, score))
            self._num_worse = 0
        return tuple(decisions)


class Movements:
    """Measures how far each stage's weights move from where they are when this object is made."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._before: list[Mapping[str, Tensor]] = [
            {name: parameter.detach().clone() for name, parameter in stage.named_parameters() if parameter.requires_grad}
            for stage in model.backbone
        ]

    @torch.no_grad()
    def measure(self) -> tuple[float, ...]:
        """Each stage's movement as a share of its weights' norm before, 0 for frozen stages; rank 0's numbers, on every rank."""
        shares, zero = [], next(self.model.parameters()).new_zeros((), dtype=torch.float64)
        for stage, before in zip(self.model.backbone, self._before, strict=True):
            now = dict(stage.named_parameters())
            moved = sum(((now[name] - x).double().square().sum() for name, x in before.items()), zero)
            norm = sum((x.double().square().sum() for x in before.values()), zero)
            shares.append((moved / norm.clamp(min=1e-30)).sqrt())
        return tuple(broadcast(torch.stack(shares)).tolist())


def _words(score: Score) -> str:
    return f"mean accuracy {score[0]:.4f}, mean loss {-score[1]:.4f}"
