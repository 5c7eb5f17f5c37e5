"""The temperature of a head: what its logits are divided by, so that its probabilities are as often right as they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

# Between these the temperature is searched.
LEAST, MOST = 0.1, 10.0
DIGITS = 4
MAX_STEPS = 50
TOLERANCE = 1e-5
# In place of a probability of 0, which has no logarithm.
LEAST_FLOAT = torch.finfo(torch.float32).tiny


def of_classes(logits: Tensor, truths: Tensor) -> Sequence[float | None]:
    """The temperature of each model's logits (V, N, C) of classes, of which `truths` (N) are the true ones; None of no rows. See
    `_fit`."""
    num_models, num_rows, num_classes = logits.shape
    if not num_rows:
        return [None] * num_models
    doubt = _doubt(num_rows)
    own, others = logits.gather(2, truths.expand(num_models, -1)[..., None])[..., 0], logits.sum(dim=2)
    wanted = (1 - doubt) * own + doubt * (others - own) / max(1, num_classes - 1)

    def expect(sharpness: Tensor) -> tuple[Tensor, Tensor]:
        shares = (logits * sharpness[:, None, None]).softmax(dim=2).mul_(logits)
        mean = shares.sum(dim=2)
        return mean, shares.mul_(logits).sum(dim=2) - mean.square()

    return _fit(expect, wanted)


def of_labels(logits: Tensor, truths: Tensor) -> Sequence[float | None]:
    """The one temperature of each model's logits (V, N, C) of labels, each yes or no as `truths` (V, N, C) says; None of no rows.
    See `_fit`."""
    if not logits.shape[1]:
        return [None] * len(logits)
    doubt = _doubt(logits.shape[1])
    flat, wanted = logits.flatten(1), (torch.where(truths, 1 - doubt, doubt) * logits).flatten(1)

    def expect(sharpness: Tensor) -> tuple[Tensor, Tensor]:
        shares = (flat * sharpness[:, None]).sigmoid()
        return shares * flat, shares * (1 - shares) * flat.square()

    return _fit(expect, wanted)


def _doubt(num_samples: int) -> float:
    return 1 / (num_samples + 2)


def _fit(expect: Callable[[Tensor], tuple[Tensor, Tensor]], wanted: Tensor) -> list[float]:
    """Each model's temperature between 0.1 and 10, to four digits, at which the cross entropy of its rows is least.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. `expect` gives mean and variance (V, M) of the logits under
    the probabilities of inverse temperatures (V), `wanted` (V, M) the mean under the truth. Truths count as Platt's do
    ("Probabilistic Outputs for Support Vector Machines", 1999): of n samples that were read without a mistake, the next is wrong
    with a chance of 1 in n + 2, which keeps a small validation split from asking for certainty.
    """
    goal = wanted.mean(dim=1)
    low, high, sharpness = (torch.full_like(goal, bound) for bound in (1 / MOST, 1 / LEAST, 1.0))
    goes_on = torch.ones_like(goal, dtype=torch.bool)
    # The loss is convex in the inverse of the temperature: Newton's steps, and a halving where one leaves the bracket.
    for _ in range(MAX_STEPS):
        mean, variance = expect(sharpness)
        slope, bend = mean.mean(dim=1) - goal, variance.mean(dim=1)
        low, high = torch.where(slope > 0, low, sharpness), torch.where(slope > 0, sharpness, high)
        step = torch.where(bend > 0, sharpness - slope / bend, low)
        step = torch.where((low < step) & (step < high), step, (low + high) / 2)
        before, sharpness = sharpness, torch.where(goes_on, step, sharpness)
        goes_on &= (sharpness - before).abs() >= TOLERANCE * before
        if not goes_on.any():
            break
    return [round(1 / each, DIGITS) for each in sharpness.tolist()]


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
