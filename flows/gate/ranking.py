"""The choice of the candidate among the trained variants. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flows.errors import AskedWrongly
from flows.records import TrainedVariant


class Choice(NamedTuple):
    """The candidate, and in words why it is this variant."""

    variant: TrainedVariant
    why: str


def choose(variants: Sequence[TrainedVariant], metric: str, costs: Mapping[str, int], num_labels: int) -> Choice:
    """The candidate: the cheapest to serve of the variants within one standard error of the best by `val/<metric>`.

    `costs` are the multiply-adds of a sample's way through a variant, by its key; then fewer parameters count, then the
    measure, then fewer trained parameters, then the plan's order. This is the rule of one standard error (Breiman et al. 1984,
    "Classification and Regression Trees", section 3.4.3). The error is that of a share among `num_labels` labels of validation
    (the score interval of Wilson 1927 at z = 1): a mean of values between 0 and 1 varies no more, and for measures that are no
    mean it is a rule of thumb. Raises AskedWrongly if no variant has a finite value.
    """
    name = f"val/{metric}"
    ranked = [variant for variant in variants if math.isfinite(variant.metrics.get(name, math.nan))]
    if not ranked:
        reasons = "; ".join(_missing(variant, name) for variant in variants) or "there is no variant"
        raise AskedWrongly(f"no variant can be ranked by {name!r}: {reasons}")
    best = max(variant.metrics[name] for variant in ranked)
    least = _one_error_below(best, num_labels)
    near = [variant for variant in ranked if variant.metrics[name] >= least]
    chosen = min(near, key=lambda v: (costs[v.key], v.num_parameters, -v.metrics[name], v.num_trained_parameters))
    if chosen.metrics[name] == best:
        return Choice(chosen, f"the best on validation, {name} {best:.4f}")
    why = (
        f"the cheapest to serve ({costs[chosen.key] / 1e6:,.0f} million multiply-adds, {chosen.num_parameters:,} parameters) of "
        f"the {len(near)} variants within one standard error of the best on validation: {name} {chosen.metrics[name]:.4f} of "
        f"{best:.4f}, at least {least:.4f} on {num_labels} labels"
    )
    return Choice(chosen, why)


def _one_error_below(share: float, num_labels: int) -> float:
    if not num_labels or not 0 <= share <= 1:
        return share
    n = num_labels
    return min(share, (share + 0.5 / n - math.sqrt(share * (1 - share) / n + 0.25 / n**2)) / (1 + 1 / n))


def _missing(variant: TrainedVariant, name: str) -> str:
    if name in variant.metrics:
        return f"variant {variant.variant.variant_id}: {name} is {variant.metrics[name]} (diverged? try a lower learning_rate)"
    known = ", ".join(sorted(key for key in variant.metrics if key.startswith("val/"))) or "none"
    return f"variant {variant.variant.variant_id} has no {name}; it has: {known}"
