"""What a plan costs, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heads.trunks.calibration import Rates


@dataclass(frozen=True)
class TrunkUse:
    """A trunk: who shares it, what of it is stored, and what is left to forward through it.

    `through` is its last stage, `views` are numbers of varied views (0 is the plain one), `taps` what is stored of it, such as
    `3:map`. `bytes` are those of all its features; `flops` (multiply-adds) and `seconds` are those of what is left.
    """

    trunk_id: str
    backbone: str
    through: str
    num_stages: int
    image_size_px: int
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
class ImagePhase:
    """A phase of a variant left to train that reads images, and why it does."""

    variant_id: str
    label: str
    epochs: int
    num_frozen_stages: int
    reason: str
    is_screened: bool


@dataclass(frozen=True)
class Estimate:
    """What is left costs, and what a job for each variant would without a feature store (`alone`).

    FLOPs are multiply-adds of backbones. `elsewhere` says how the machine that trains may differ from this one, and `rates`
    by backbone and image size are those that the seconds were computed from, `calibrated` where they were timed here.
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
    """The trunks of a plan, the phases that train on images, and an estimate of what is left."""

    trunks: tuple[TrunkUse, ...]
    images: tuple[ImagePhase, ...]
    estimate: Estimate
