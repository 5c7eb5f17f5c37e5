"""What is checked of the tensors of any weights, and how their names are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from heads.errors import WeightsError

NUM_KEYS_SHOWN = 6


def check_finite(weights: str, state: Mapping[str, Tensor]) -> None:
    """Raises WeightsError if these weights hold a NaN or an infinity."""
    # A sum, which takes a tenth of the time, is finite only if all numbers are; large ones may overflow it.
    spoilt = [name for name, tensor in state.items() if not tensor.sum().isfinite() and not tensor.isfinite().all()]
    if spoilt:
        raise WeightsError(f"{weights} holds numbers that are not finite in {listed(spoilt)}; give another file")


def listed(keys: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(keys) - NUM_KEYS_SHOWN} more" if len(keys) > NUM_KEYS_SHOWN else ""
    return ", ".join(keys[:NUM_KEYS_SHOWN]) + more
