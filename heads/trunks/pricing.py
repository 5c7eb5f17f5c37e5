"""The costs of a frozen trunk's features, computed from a sample or stored and read back, and so which are worth storing.

A price follows from a variant alone, whatever the machine: all ranks of a job, and the planner, decide alike.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from heads.backbones.costs import count_costs
from heads.data.modalities import preparation_of
from heads.phases import Form, Tap
from heads.spec import Variant

# Measured on one core of a shared two-core server. MobileNetV2 at 224 px takes 20 to 40 ms an image forward, 7 to 15 billion
# multiply-adds a second; larger networks are faster, ResNet-18's last layer at 50 billion.
MULTIPLY_ADDS_PER_SECOND = 10e9
# Batches of maps in random order, laid out channels last: 300 to 330 MB/s from a local disk, 450 to 740 from its cache.
BYTES_PER_SECOND = 300e6
# Training takes a stage's gradients to its weights and to its input, each about as much arithmetic as the way forward.
BACKWARD_FACTOR = 2


@dataclass(frozen=True)
class Price:
    """The price of one sample's features: multiply-adds to compute them, bytes to store, seconds to compute or to store them.

    They are written once and read back at least once: storing pays if both together are cheaper than one computation.
    """

    multiply_adds: int
    num_bytes: int
    compute_seconds: float
    store_seconds: float

    @property
    def pays(self) -> bool:
        """Whether storing is cheaper than computing."""
        return self.store_seconds < self.compute_seconds

    def __str__(self) -> str:
        storing = f"{self.num_bytes / 1e3:,.0f} kB a sample, {1e3 * self.store_seconds:.2g} ms to write and read"
        return f"{storing}, {1e3 * self.compute_seconds:.2g} ms to compute"


def price(backbone: str, size: int, taps: Collection[Tap], value_bytes: int = 4) -> Price:
    """The price of the features at some taps, of `value_bytes` a number, for samples of this size (`Variant.sample_size`)."""
    costs = count_costs(backbone, size)
    multiply_adds = forward_multiply_adds(backbone, size, max(stage for stage, _ in taps) + 1)
    num_bytes = value_bytes * sum(_num_values(costs[stage].shape, form) for stage, form in taps)
    compute_seconds = preparation_of(backbone).prepare_seconds(size) + multiply_adds / MULTIPLY_ADDS_PER_SECOND
    return Price(multiply_adds, num_bytes, compute_seconds, 2 * num_bytes / BYTES_PER_SECOND)


def forward_multiply_adds(backbone: str, size: int, num_stages: int | None = None) -> int:
    """The multiply-adds of a backbone's first stages, by default all, for one sample of this size."""
    return sum(cost.multiply_adds for cost in count_costs(backbone, size)[:num_stages])


def _num_values(shape: tuple[int, ...], form: Form) -> int:
    """How many numbers a tap of features (C, H, W) or tokens (1 + L, C) holds."""
    pooled = shape[0] if len(shape) == 3 else shape[-1]
    whole = 1
    for length in shape:
        whole *= length
    return whole if form == "map" else pooled


def epoch_multiply_adds(variant: Variant, num_frozen_stages: int, num_train: int, num_val: int, *, stored: bool = False) -> int:
    """The multiply-adds of a backbone in an epoch over so many samples, if all stages but its frozen first ones are trained.

    With `stored` features, the frozen stages do not run. Heads are left out: they are little beside backbones.
    """
    size = preparation_of(variant.backbone).size_of(variant.fit)
    costs = [cost.multiply_adds for cost in count_costs(variant.backbone, size)]
    thawed = sum(costs[num_frozen_stages:])
    forward = thawed if stored else sum(costs)
    return num_train * (forward + BACKWARD_FACTOR * thawed) + num_val * forward
