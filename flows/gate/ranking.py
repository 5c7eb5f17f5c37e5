"""Variants by their measure on validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flows.errors import AskedWrongly
from flows.records import TrainedVariant


@dataclass(frozen=True)
class Ranking:
    """Variants best first, and why others could not be ranked."""

    variants: tuple[TrainedVariant, ...]
    excluded: tuple[str, ...] = ()


def rank(variants: Sequence[TrainedVariant], metric: str) -> Ranking:
    """The variants by `val/<metric>`; exact ties go to fewer trained parameters, then fewer parameters, then the plan's order.

    Raises AskedWrongly where no variant has a finite value.
    """
    name = f"val/{metric}"
    values = [v.metrics.get(name, math.nan) for v in variants]
    ranked = [v for v, value in zip(variants, values, strict=True) if math.isfinite(value)]
    excluded = tuple(_missing(v, name) for v, value in zip(variants, values, strict=True) if not math.isfinite(value))
    if not ranked:
        raise AskedWrongly(f"no variant can be ranked by {name!r}: {'; '.join(excluded) or 'there is no variant'}")
    ranked.sort(key=lambda v: (-v.metrics[name], v.num_trained_parameters, v.num_parameters))
    return Ranking(tuple(ranked), excluded)


def choose(variants: Sequence[TrainedVariant], metric: str) -> TrainedVariant:
    """The candidate: the first of `rank`."""
    return rank(variants, metric).variants[0]


def _missing(variant: TrainedVariant, name: str) -> str:
    if name in variant.metrics:
        return f"variant {variant.variant.variant_id}: {name} is {variant.metrics[name]} (diverged? try a lower learning_rate)"
    known = ", ".join(sorted(key for key in variant.metrics if key.startswith("val/"))) or "none"
    return f"variant {variant.variant.variant_id} has no {name}; it has: {known}"
