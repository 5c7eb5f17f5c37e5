"""The factor of the learning rate, update by update: a schedule times a warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from heads.phases import Phase
from heads.spec import Fit, Schedule

DEFAULT_WARM_UP_SHARE = 0.1
MAX_DEFAULT_WARM_UP_UPDATES = 100
# Divided by ten at a half and three quarters of the way, as ResNets are trained (He et al., "Deep Residual Learning for
# Image Recognition", CVPR 2016, section 4.2), and also when validation has not improved for this many epochs.
STEP_FACTOR = 0.1
STEP_MILESTONES = (0.5, 0.75)
PLATEAU_EPOCHS = 2

Score = tuple[float, float]


def rate_factors(fit: Fit, phase: Phase, epoch: int, num_updates: int, scores: Sequence[Score]) -> tuple[float, ...]:
    """The factor at each of an epoch's `num_updates` updates; `scores` are those of the epochs before it, greater is better.

    The warm-up is linear and starts anew with a phase of the freeze policy: new parameters, a new optimizer. So does
    `plateau`; the other schedules run over all epochs. Nothing is remembered, so a resumed training needs no state.
    """
    plateaus = num_plateaus(scores[phase.first_epoch :]) if fit.schedule == "plateau" else 0
    start, warm_up = phase.first_epoch * num_updates, num_warm_up_updates(fit, phase, num_updates)
    return _factors(fit.schedule, epoch * num_updates, num_updates, fit.epochs * num_updates, start, warm_up, plateaus)


# Trainings side by side mostly share their schedule.
@lru_cache(maxsize=4)
def _factors(
    schedule: Schedule, first: int, num_updates: int, num_all: int, start: int, warm_up: int, plateaus: int
) -> tuple[float, ...]:
    """The factors at updates `first` and following of `num_all`, the phase's first being `start`."""
    factors = []
    for position in range(first, first + num_updates):
        ramp = min(1.0, (position - start + 1) / max(1, warm_up))
        match schedule:
            case "cosine":
                factors.append(ramp * 0.5 * (1 + math.cos(math.pi * position / num_all)))
            case "step":
                passed = sum(position >= milestone * num_all for milestone in STEP_MILESTONES)
                factors.append(ramp * STEP_FACTOR**passed)
            case "plateau":
                factors.append(ramp * STEP_FACTOR**plateaus)
            case "constant":
                factors.append(ramp)
    return tuple(factors)


def num_warm_up_updates(fit: Fit, phase: Phase, num_updates: int) -> int:
    """Over how many updates a phase warms up: `fit.warmup` of its epochs, below 1 a share of them, from 1 on a number."""
    length = phase.num_epochs * num_updates
    if fit.warmup is None:
        return min(MAX_DEFAULT_WARM_UP_UPDATES, math.ceil(length * DEFAULT_WARM_UP_SHARE))
    return min(length, math.ceil(fit.warmup * (length if fit.warmup < 1 else num_updates)))


def num_plateaus(scores: Sequence[Score]) -> int:
    """How often `PLATEAU_EPOCHS` epochs in a row brought nothing better than the best before them."""
    best, since, plateaus = None, 0, 0
    for score in scores:
        if best is None or score > best:
            best, since = score, 0
            continue
        since += 1
        if since == PLATEAU_EPOCHS:
            since, plateaus = 0, plateaus + 1
    return plateaus
