"""How fast this machine is: a few samples and a few forward passes are timed, for estimates and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from heads.trunks.threads import threads

BATCH_SIZE = 8


@dataclass(frozen=True)
class Rates:
    """Rates of one process: seconds from a file to a network's input, and from a sample kept in memory; multiply-adds a second
    of a forward pass.
    """

    sample_seconds: float
    kept_sample_seconds: float
    multiply_adds_per_second: float


def state_rates(backbone: str, size: int) -> Rates:
    """The rates that the backbone's modality and `heads.trunks.pricing` state; nothing is measured."""
    preparation = preparation_of(backbone)
    return Rates(preparation.read_seconds(size), preparation.kept_seconds(size), MULTIPLY_ADDS_PER_SECOND)


def measure_rates(
    variant: Variant,
    weights: Path | None,
    files: Sequence[Path | bytes],
    *,
    device: torch.device,
    num_threads: int,
    seconds: float,
) -> Rates:
    """The rates of the variant's own backbone and size of samples, measured on these files in about `seconds`.

    Raises ImageError or TextError on a file that cannot be read.
    """
    preparation = preparation_of(variant.backbone)
    size = preparation.size_of(variant.fit)
    vocabulary = preparation.vocabulary_of(variant, weights, files)
    samples = preparation.open_samples(variant, files, {}, varied=True, cache_bytes=DEFAULT_CACHE_BYTES, vocabulary=vocabulary)
    feed = samples.feed(device)
    stages = build_backbone(variant, weights).eval().to(device).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, variant.fit.precision):
            stages(batch.features)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with threads(num_threads):
        sample_seconds = median(_time(feed.__getitem__, seconds / 3, len(files)))
        kept_seconds = median(_time(feed.__getitem__, seconds / 6, len(files)))
        batch = feed.finish(feed.collate([feed[0]] * BATCH_SIZE))[0].to(device, channels_last=True)
        forward()
        # The least of equal runs: other work of the machine can only make one slower.
        batch_seconds = min(_time(lambda _: forward(), seconds / 2))
    rate = BATCH_SIZE * forward_multiply_adds(variant.backbone, size) / batch_seconds
    return Rates(sample_seconds, min(kept_seconds, sample_seconds), rate)


def _time(work: Callable[[int], object], seconds: float, most: int = 1000) -> list[float]:
    """The seconds of each call of `work`, which gets its number: at least one call, and as many as fit into `seconds`."""
    durations: list[float] = []
    while len(durations) < most and sum(durations) < seconds:
        start = perf_counter()
        work(len(durations))
        durations.append(perf_counter() - start)
    return durations
