"""The temperature of a head: what its logits are divided by, so that its probabilities are as often right as they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

# Between these the temperature is searched.
LEAST, MOST = 0.1, 10.0
# Of the logarithm of a temperature, before anything was seen.
DEVIATION = 0.5
DIGITS = 4
MAX_STEPS = 50
TOLERANCE = 1e-5
# In place of a probability of 0, which has no logarithm.
LEAST_FLOAT = torch.finfo(torch.float32).tiny


def of_classes(logits: Tensor, truths: Tensor) -> Sequence[float | None]:
    """The temperature of each model's logits (V, N, C) of classes, of which `truths` (N) are the true ones; None of no rows. See
    `_fit`."""
    if not logits.shape[1]:
        return [None] * len(logits)

    def expect(sharpness: Tensor) -> tuple[Tensor, Tensor]:
        shares = (logits * sharpness[:, None, None]).softmax(dim=2).mul_(logits)
        mean = shares.sum(dim=2)
        return mean, shares.mul_(logits).sum(dim=2) - mean.square()

    return _fit(expect, logits.gather(2, truths.expand(len(logits), -1)[..., None])[..., 0])


def of_labels(logits: Tensor, truths: Tensor) -> Sequence[float | None]:
    """The one temperature of each model's logits (V, N, C) of labels, each yes or no as `truths` (V, N, C) says; None of no rows.
    See `_fit`."""
    if not logits.shape[1]:
        return [None] * len(logits)
    flat = logits.flatten(1)

    def expect(sharpness: Tensor) -> tuple[Tensor, Tensor]:
        shares = (flat * sharpness[:, None]).sigmoid()
        return shares * flat, shares * (1 - shares) * flat.square()

    return _fit(expect, torch.where(truths, logits, 0.0).flatten(1))


def _fit(expect: Callable[[Tensor], tuple[Tensor, Tensor]], wanted: Tensor) -> list[float]:
    """Each model's temperature between 0.1 and 10, to four digits, that is likeliest after its answers.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, but with a prior, by which a small validation split that
    was read without a mistake does not ask for certainty: the logarithm is normal around 0 with a deviation of a half, so that
    few answers leave a temperature near 1. `expect` gives mean and variance (V, M) of the logits under the probabilities of
    inverse temperatures (V), `wanted` (V, M) the logits of the truth.
    """
    goal = wanted.sum(dim=1)
    low, high, place = (torch.full_like(goal, bound) for bound in (-math.log(MOST), -math.log(LEAST), 0.0))
    goes_on = torch.ones_like(goal, dtype=torch.bool)
    # Newton's steps in the logarithm of the inverse, and a halving where one leaves the bracket.
    for _ in range(MAX_STEPS):
        sharpness = place.exp()
        mean, variance = expect(sharpness)
        lost = sharpness * (mean.sum(dim=1) - goal)
        slope = lost + place / DEVIATION**2
        bend = lost + sharpness.square() * variance.sum(dim=1) + 1 / DEVIATION**2
        low, high = torch.where(slope > 0, low, place), torch.where(slope > 0, place, high)
        step = torch.where(bend > 0, place - slope / bend, low)
        step = torch.where((low < step) & (step < high), step, (low + high) / 2)
        before, place = place, torch.where(goes_on, step, place)
        goes_on &= (place - before).abs() >= TOLERANCE
        if not goes_on.any():
            break
    return [round(math.exp(-each), DIGITS) for each in place.tolist()]


def log_odds(probabilities: Tensor) -> Tensor:
    """The logits, in float64, of probabilities of yes that a float32 sigmoid gave; where it gave 0 or 1, its last one before."""
    return probabilities.double().clamp(LEAST_FLOAT, 1 - torch.finfo(torch.float32).eps / 2).logit()


def tempered(logits: Tensor, temperature: float | None) -> Tensor:
    """Logits over their temperature; as they are without one."""
    # Converted only if need be: by the conversion torch.export would tie a program to a device.
    return logits if temperature is None else (logits if logits.dtype == torch.float32 else logits.float()) / temperature


def read_temperatures(stated: Mapping[str, object], targets: Collection[str]) -> dict[str, float]:
    """The temperatures by target that a bundle states. Raises ValueError if one is of no target, or no positive finite number."""
    for target, value in stated.items():
        if target not in targets or not isinstance(value, float | int) or not 0 < float(str(value)) < math.inf:
            raise ValueError(f"the temperature of {target!r:.50} is {value!r:.50}; a target's is a positive number")
    return {target: float(str(value)) for target, value in stated.items()}
