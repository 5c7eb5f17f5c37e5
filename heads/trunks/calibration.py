"""How fast this machine is: a few pictures and a few forward passes on the clock, for estimates and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from heads.data.modalities import preparation_of
from heads.data.samples import DEFAULT_CACHE_BYTES
from heads.model.model import build_backbone
from heads.model.precision import autocast
from heads.spec import Variant
from heads.trunks.pricing import MULTIPLY_ADDS_PER_SECOND, forward_multiply_adds

BATCH_SIZE = 8
# Decoding a photograph of half a megapixel.
DECODE_SECONDS = 5e-3


@dataclass(frozen=True)
class Rates:
    """Seconds from a file to a network's input, and from a sample in memory; multiply-adds a second of a forward pass.

    All are of one process.
    """

    sample_seconds: float
    kept_sample_seconds: float
    multiply_adds_per_second: float


def state_rates(backbone: str, size: int) -> Rates:
    """The rates that `heads.trunks.pricing` states, measured on no machine of the caller's."""
    prepare_seconds = preparation_of(backbone).prepare_seconds(size)
    return Rates(DECODE_SECONDS + prepare_seconds, prepare_seconds, MULTIPLY_ADDS_PER_SECOND)


def measure_rates(
    variant: Variant, weights: Path | None, files: Sequence[Path], *, device: torch.device, num_threads: int, seconds: float
) -> Rates:
    """The rates of the variant's own backbone and image size, from these files, in about so many seconds.

    Raises ImageError on a file that does not decode.
    """
    preparation = preparation_of(variant.backbone)
    size = preparation.size_of(variant.fit)
    samples = preparation.open_samples(variant, files, {}, varied=True, cache_bytes=DEFAULT_CACHE_BYTES)
    stages = build_backbone(variant, weights).eval().to(device).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, variant.fit.precision):
            stages(batch.features)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with _threads(num_threads):
        sample_seconds = median(_time(samples.__getitem__, seconds / 3, len(files)))
        kept_seconds = median(_time(samples.__getitem__, seconds / 6, len(files)))
        batch = samples.collate([samples[0][0]] * BATCH_SIZE).to(device, channels_last=True)
        forward()
        # Always the same: what else the machine does can only make it slower.
        batch_seconds = min(_time(lambda _: forward(), seconds / 2))
    rate = BATCH_SIZE * forward_multiply_adds(variant.backbone, size) / batch_seconds
    return Rates(sample_seconds, min(kept_seconds, sample_seconds), rate)


def _time(work: Callable[[int], object], seconds: float, most: int = 1000) -> list[float]:
    """The seconds of each go, of as many as fit and one at the least; each gets its number."""
    found: list[float] = []
    while len(found) < most and sum(found) < seconds:
        start = perf_counter()
        work(len(found))
        found.append(perf_counter() - start)
    return found


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
