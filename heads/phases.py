"""Phases: stretches of epochs in which the same stages are frozen, and the features that each reads. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from heads.spec import Variant, frozen_through

# Fine-tuning after the heads have settled moves the backbone gently, or it loses what it was taken for
# (Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
LP_FT_BACKBONE_RATE_FACTOR = 0.1


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which the first `num_frozen_stages` of the backbone are frozen."""

    first_epoch: int
    num_epochs: int
    num_frozen_stages: int
    backbone_rate_factor: float = 1.0


Form = Literal["pooled", "map", "class"]


class Tap(NamedTuple):
    """The features after a stage: whole (`map`), or `pooled` to a map's mean (C, 1, 1) or the class token (1, C).

    Of texts, `pooled` is the mean of the tokens (1, C), and `class` the first one (1, C).
    """

    stage: int
    form: Form

    @property
    def name(self) -> str:
        """The tap's name in the feature store."""
        return f"{self.stage}:{self.form}"


@dataclass(frozen=True)
class PhaseInputs:
    """What a phase trains from, and why: the `taps` that it reads from the feature store, or samples if there are none."""

    taps: tuple[Tap, ...]
    reason: str


def compile_policy(variant: Variant) -> tuple[Phase, ...]:
    """The phases of a variant's freeze policy, in order; together they cover its epochs."""
    epochs, stages = variant.fit.epochs, variant.stages
    match variant.freeze:
        # `adaptive` begins with all stages thawed; `heads.training.adaptive` decides on the way.
        case "none" | "adaptive":
            return (Phase(0, epochs, 0),)
        case "all":
            return (Phase(0, epochs, len(stages)),)
        case "gradual":
            return _gradual(epochs, len(stages))
        case "lp_ft":
            return _lp_ft(epochs, len(stages))
    stage = frozen_through(variant.freeze, variant.backbone)
    assert stage is not None
    return (Phase(0, epochs, stages.index(stage) + 1),)


def _gradual(epochs: int, num_stages: int) -> tuple[Phase, ...]:
    stride = max(1, epochs // (num_stages + 1))
    starts = range(0, epochs, stride)[: num_stages + 1]
    ends = [*starts[1:], epochs]
    return tuple(
        Phase(start, end - start, num_stages - thawed) for thawed, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _lp_ft(epochs: int, num_stages: int) -> tuple[Phase, ...]:
    probing = max(1, epochs // 3)
    phases = (
        Phase(0, probing, num_stages),
        Phase(probing, epochs - probing, 0, LP_FT_BACKBONE_RATE_FACTOR),
    )
    return tuple(phase for phase in phases if phase.num_epochs)


def phase_number(phases: Sequence[Phase], epoch: int) -> int:
    """The number of the phase that an epoch belongs to."""
    return max(number for number, phase in enumerate(phases) if phase.first_epoch <= epoch)
