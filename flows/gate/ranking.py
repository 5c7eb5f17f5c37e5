"""The choice of the candidate among the trained variants. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flows.errors import AskedWrongly
from flows.records import TrainedVariant


def choose(variants: Sequence[TrainedVariant], metric: str) -> TrainedVariant:
    """The candidate: the variant that is best by `val/<metric>`.

    Exact ties go to fewer trained parameters, then fewer parameters, then the plan's order. Raises AskedWrongly if no variant
    has a finite value.
    """
    name = f"val/{metric}"
    ranked = [variant for variant in variants if math.isfinite(variant.metrics.get(name, math.nan))]
    if not ranked:
        reasons = "; ".join(_missing(variant, name) for variant in variants) or "there is no variant"
        raise AskedWrongly(f"no variant can be ranked by {name!r}: {reasons}")
    return min(ranked, key=lambda v: (-v.metrics[name], v.num_trained_parameters, v.num_parameters))


def _missing(variant: TrainedVariant, name: str) -> str:
    if name in variant.metrics:
        return f"variant {variant.variant.variant_id}: {name} is {variant.metrics[name]} (diverged? try a lower learning_rate)"
    known = ", ".join(sorted(key for key in variant.metrics if key.startswith("val/"))) or "none"
    return f"variant {variant.variant.variant_id} has no {name}; it has: {known}"
