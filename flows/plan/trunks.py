"""The frozen trunks that a plan's variants share, and the phases that read samples. The inputs of phases are handed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heads.bert_size import stages_of
from heads.phases import Phase, PhaseInputs, Tap
from heads.spec import Variant


@dataclass(frozen=True)
class VariantPhases:
    """A variant's phases with their inputs, whether its work is done, and the trunk ids by view, the plain view's first."""

    variant: Variant
    done: bool
    inputs: Mapping[Phase, PhaseInputs]
    trunk_ids: tuple[str, ...]

    @property
    def taps(self) -> frozenset[Tap]:
        """All taps that its phases read from the feature store."""
        return frozenset(tap for inputs in self.inputs.values() for tap in inputs.taps)

    @property
    def from_samples(self) -> Mapping[Phase, PhaseInputs]:
        """The phases that read samples, and not the feature store."""
        return {phase: inputs for phase, inputs in self.inputs.items() if not inputs.taps}


@dataclass(frozen=True)
class TrunkGroup:
    """A trunk, which runs once a sample and view for all `variants` (ids) that share it.

    `left` are the variants still to train, `taps` what these read of the trunk (or what all read, if none is left). `views` are
    the numbers of the views that it runs on: view 0 of training and validation samples, the others of training samples only.
    `sample_size` is that of `Variant`.
    """

    trunk_id: str
    backbone: str
    sample_size: int
    whole: bool
    views: tuple[int, ...]
    variants: tuple[str, ...]
    left: tuple[str, ...]
    taps: tuple[Tap, ...]

    @property
    def through(self) -> str:
        """The name of the trunk's last stage."""
        return stages_of(self.backbone)[max(tap.stage for tap in self.taps)]

    @property
    def num_stages(self) -> int:
        """The number of the trunk's stages."""
        return max(tap.stage for tap in self.taps) + 1


def group_by_trunk(variants: Sequence[VariantPhases]) -> tuple[TrunkGroup, ...]:
    """The trunks whose features the variants read, in the variants' order, each with all variants that share it."""
    reading = [one for one in variants if one.taps]
    ids = dict.fromkeys(trunk for one in reading for trunk in one.trunk_ids)
    return tuple(_group(trunk, [one for one in reading if trunk in one.trunk_ids]) for trunk in ids)


def _group(trunk_id: str, sharing: Sequence[VariantPhases]) -> TrunkGroup:
    first, left = sharing[0].variant, [one for one in sharing if not one.done]
    return TrunkGroup(
        trunk_id=trunk_id,
        backbone=first.backbone,
        sample_size=first.sample_size,
        whole=first.sees_whole,
        views=tuple(sorted(_views(trunk_id, left or sharing))),
        variants=tuple(one.variant.variant_id for one in sharing),
        left=tuple(one.variant.variant_id for one in left),
        taps=tuple(sorted({tap for one in left or sharing for tap in one.taps})),
    )


def _views(trunk_id: str, variants: Iterable[VariantPhases]) -> set[int]:
    return {view for one in variants for view, trunk in enumerate(one.trunk_ids) if trunk == trunk_id}
