"""The temperature of a head: what its logits are divided by, so that its probabilities are as often right as they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

# Between these the temperature is searched.
LEAST, MOST = 0.1, 10.0
DIGITS = 4
MAX_STEPS = 50
TOLERANCE = 1e-5
# In place of a probability of 0, which has no logarithm.
LEAST_FLOAT = torch.finfo(torch.float32).tiny


def of_classes(logits: Tensor, truths: Tensor) -> float | None:
    """The temperature of logits (N, C) of classes, of which `truths` (N) are the true ones; None of no rows. See `_fit`."""
    if not len(logits):
        return None
    doubt = _doubt(len(logits))
    own, others = logits.gather(1, truths[:, None])[:, 0], logits.sum(dim=1)
    wanted = (1 - doubt) * own + doubt * (others - own) / max(1, logits.shape[1] - 1)

    def expect(sharpness: float) -> tuple[Tensor, Tensor]:
        shares = (logits * sharpness).softmax(dim=1).mul_(logits)
        mean = shares.sum(dim=1)
        return mean, shares.mul_(logits).sum(dim=1) - mean.square()

    return _fit(expect, wanted)


def of_labels(logits: Tensor, truths: Tensor) -> float | None:
    """The one temperature of logits (N, C) of labels, each yes or no as `truths` (N, C) says; None of no rows. See `_fit`."""
    if not len(logits):
        return None
    doubt = _doubt(len(logits))

    def expect(sharpness: float) -> tuple[Tensor, Tensor]:
        shares = (logits * sharpness).sigmoid()
        return shares * logits, shares * (1 - shares) * logits.square()

    return _fit(expect, torch.where(truths, 1 - doubt, doubt) * logits)


def _doubt(num_samples: int) -> float:
    return 1 / (num_samples + 2)


def _fit(expect: Callable[[float], tuple[Tensor, Tensor]], wanted: Tensor) -> float:
    """The temperature between 0.1 and 10, to four digits, at which the cross entropy of the rows is least.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. `expect` gives mean and variance of the logits under the
    probabilities of an inverse temperature, `wanted` the mean under the truth. Truths count as Platt's do ("Probabilistic Outputs
    for Support Vector Machines", 1999): of n samples that were read without a mistake, the next is wrong with a chance of
    1 in n + 2, which keeps a small validation split from asking for certainty.
    """
    goal, low, high, sharpness = wanted.mean().item(), 1 / MOST, 1 / LEAST, 1.0
    # The loss is convex in the inverse of the temperature: Newton's steps, and a halving where one leaves the bracket.
    for _ in range(MAX_STEPS):
        mean, variance = expect(sharpness)
        slope, bend = mean.mean().item() - goal, variance.mean().item()
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        step = sharpness - slope / bend if bend > 0 else low
        before, sharpness = sharpness, step if low < step < high else (low + high) / 2
        if abs(sharpness - before) < TOLERANCE * before:
            break
    return round(1 / sharpness, DIGITS)


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
        if target not in targets or not isinstance(value, float | int) or not 0 < value < math.inf:
            raise ValueError(f"the temperature of {target!r:.50} is {value!r:.50}; a target's is a positive number")
    return {target: float(str(value)) for target, value in stated.items()}
