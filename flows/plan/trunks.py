"""Which frozen trunks a plan's variants share, and which of their epochs need images. What a phase reads is handed in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heads.catalogue import BACKBONE_STAGES
from heads.phases import Phase
from heads.spec import Variant

# The features after a stage, by its number: a whole `map`, or `pooled`.
StageTap = tuple[int, Literal["pooled", "map"]]


@dataclass(frozen=True)
class Stretch:
    """A phase, the taps that it reads from the store (none: it reads images), and why."""

    phase: Phase
    taps: tuple[StageTap, ...]
    reason: str


@dataclass(frozen=True)
class Course:
    """A variant's phases, whether its work is done, and the trunk ids of its training images' views, the plain one first."""

    variant: Variant
    done: bool
    stretches: tuple[Stretch, ...]
    trunk_ids: tuple[str, ...]

    @property
    def taps(self) -> frozenset[StageTap]:
        """All that its phases read from the store."""
        return frozenset(tap for stretch in self.stretches for tap in stretch.taps)

    @property
    def image_stretches(self) -> tuple[Stretch, ...]:
        """The phases that need images."""
        return tuple(stretch for stretch in self.stretches if not stretch.taps)


@dataclass(frozen=True)
class TrunkGroup:
    """A trunk, which runs once a sample and view for all `variants` (ids) that share it.

    `left` are those that are still to train, and `taps` what these read of it (what all read, where none is left). `views` are
    the numbers of the views that it is run on: view 0 of training and validation images, the others of training images alone.
    """

    trunk_id: str
    backbone: str
    image_size_px: int
    whole: bool
    views: tuple[int, ...]
    variants: tuple[str, ...]
    left: tuple[str, ...]
    taps: tuple[StageTap, ...]

    @property
    def through(self) -> str:
        """The name of the last stage that it runs."""
        return BACKBONE_STAGES[self.backbone][max(stage for stage, _ in self.taps)]

    @property
    def num_stages(self) -> int:
        """How many stages it runs."""
        return max(stage for stage, _ in self.taps) + 1


def group_by_trunk(courses: Sequence[Course]) -> tuple[TrunkGroup, ...]:
    """The trunks that the variants read features of, in the variants' order, each with everyone who shares it."""
    reading = [course for course in courses if course.taps]
    ids = dict.fromkeys(trunk for course in reading for trunk in course.trunk_ids)
    return tuple(_group(trunk, [course for course in reading if trunk in course.trunk_ids]) for trunk in ids)


def _group(trunk_id: str, sharing: Sequence[Course]) -> TrunkGroup:
    first, left = sharing[0].variant, [course for course in sharing if not course.done]
    return TrunkGroup(
        trunk_id=trunk_id,
        backbone=first.backbone,
        image_size_px=first.fit.image_size_px,
        whole=first.sees_whole,
        views=tuple(sorted(_views(trunk_id, left or sharing))),
        variants=tuple(course.variant.variant_id for course in sharing),
        left=tuple(course.variant.variant_id for course in left),
        taps=tuple(sorted({tap for course in left or sharing for tap in course.taps})),
    )


def _views(trunk_id: str, courses: Iterable[Course]) -> set[int]:
    return {view for course in courses for view, trunk in enumerate(course.trunk_ids) if trunk == trunk_id}
