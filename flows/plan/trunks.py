"""Which frozen trunks a plan's variants share, and which of their epochs need images. What a phase reads is handed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heads.catalogue import BACKBONE_STAGES
from heads.phases import Phase, PhaseInputs, Tap
from heads.spec import Variant


@dataclass(frozen=True)
class VariantPhases:
    """A variant's phases and what each reads, whether its work is done, and the trunk ids of its training images' views.

    The plain view's trunk id comes first.
    """

    variant: Variant
    done: bool
    inputs: Mapping[Phase, PhaseInputs]
    trunk_ids: tuple[str, ...]

    @property
    def taps(self) -> frozenset[Tap]:
        """All that its phases read from the store."""
        return frozenset(tap for inputs in self.inputs.values() for tap in inputs.taps)

    @property
    def from_images(self) -> Mapping[Phase, PhaseInputs]:
        """The phases that need images."""
        return {phase: inputs for phase, inputs in self.inputs.items() if not inputs.taps}


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
    taps: tuple[Tap, ...]

    @property
    def through(self) -> str:
        """The name of the last stage that it runs."""
        return BACKBONE_STAGES[self.backbone][max(tap.stage for tap in self.taps)]

    @property
    def num_stages(self) -> int:
        """How many stages it runs."""
        return max(tap.stage for tap in self.taps) + 1


def group_by_trunk(variants: Sequence[VariantPhases]) -> tuple[TrunkGroup, ...]:
    """The trunks that the variants read features of, in the variants' order, each with everyone who shares it."""
    reading = [one for one in variants if one.taps]
    ids = dict.fromkeys(trunk for one in reading for trunk in one.trunk_ids)
    return tuple(_group(trunk, [one for one in reading if trunk in one.trunk_ids]) for trunk in ids)


def _group(trunk_id: str, sharing: Sequence[VariantPhases]) -> TrunkGroup:
    first, left = sharing[0].variant, [one for one in sharing if not one.done]
    return TrunkGroup(
        trunk_id=trunk_id,
        backbone=first.backbone,
        image_size_px=first.fit.image_size_px,
        whole=first.sees_whole,
        views=tuple(sorted(_views(trunk_id, left or sharing))),
        variants=tuple(one.variant.variant_id for one in sharing),
        left=tuple(one.variant.variant_id for one in left),
        taps=tuple(sorted({tap for one in left or sharing for tap in one.taps})),
    )


def _views(trunk_id: str, variants: Iterable[VariantPhases]) -> set[int]:
    return {view for one in variants for view, trunk in enumerate(one.trunk_ids) if trunk == trunk_id}
