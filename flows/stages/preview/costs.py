"""The cost of a plan, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heads.catalogue import Modality

if TYPE_CHECKING:
    from heads.trunks.calibration import Rates

# What the size of a sample counts.
SAMPLE_UNITS: Mapping[Modality, str] = {"image": "px", "text": "tokens"}


@dataclass(frozen=True)
class TrunkUse:
    """A trunk: the variants that share it, its stored samples, and those left to forward through it.

    `through` is its last stage, `views` are the numbers of its views (0 is the plain one, others are augmented), `taps` are
    the outputs stored, such as `3:map`. Of texts `image_size_px` is None, of images `max_tokens`. `bytes` cover all its
    features, `flops` (multiply-adds) and `seconds` those left.
    """

    trunk_id: str
    backbone: str
    through: str
    num_stages: int
    image_size_px: int | None
    max_tokens: int | None
    whole: bool
    views: tuple[int, ...]
    taps: tuple[str, ...]
    variants: tuple[str, ...]
    variants_left: tuple[str, ...]
    samples: int
    samples_stored: int
    samples_to_forward: int
    bytes_per_sample: int
    bytes: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class SamplePhase:
    """A phase, of a variant left to train, that reads samples instead of stored features, and why."""

    variant_id: str
    label: str
    epochs: int
    num_frozen_stages: int
    reason: str
    is_screened: bool


@dataclass(frozen=True)
class Estimate:
    """The cost of the work left, and of one job a variant without a feature store (`alone`).

    FLOPs are multiply-adds of backbones. `elsewhere` says how the training machine may differ from this one. The seconds are
    computed from `rates`, by backbone and size of samples; `calibrated` says whether these were timed on this machine.
    """

    flops: int
    flops_alone: int
    flops_factor: float | None
    seconds: float
    seconds_alone: float
    seconds_factor: float | None
    calibrated: bool
    device: str
    elsewhere: str
    rates: Mapping[str, Rates]


@dataclass(frozen=True)
class Costs:
    """The trunks of a plan, the phases that train on samples (`images`, of whatever kind), and an estimate of what is left."""

    trunks: tuple[TrunkUse, ...]
    images: tuple[SamplePhase, ...]
    estimate: Estimate
