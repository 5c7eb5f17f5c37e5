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
# So many are read however long it takes: the median of fewer may be that of an odd one.
LEAST_FILES = 5


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

    Files of a usual size are read first. Raises ImageError or TextError on a file that cannot be read.
    """
    preparation = preparation_of(variant.backbone)
    size = preparation.size_of(variant.fit)
    vocabulary = preparation.vocabulary_of(variant, weights, files)
    samples = preparation.open_samples(variant, files, {}, varied=True, cache_bytes=DEFAULT_CACHE_BYTES, vocabulary=vocabulary)
    feed, usual = samples.feed(device), _usual_first(files)
    stages = build_backbone(variant, weights).eval().to(device).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, variant.fit.precision):
            stages(batch.features)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with threads(num_threads):
        read = _time(lambda number: feed[usual[number]], seconds / 3, least=LEAST_FILES, most=len(files))
        # No more than were read: others are not kept yet.
        kept = _time(lambda number: feed[usual[number]], seconds / 6, least=LEAST_FILES, most=len(read))
        batch = feed.finish(feed.collate([feed[usual[0]]] * BATCH_SIZE))[0].to(device, channels_last=True)
        forward()
        # The least of equal runs: other work of the machine can only make one slower.
        batch_seconds = min(_time(lambda _: forward(), seconds / 2))
    rate = BATCH_SIZE * forward_multiply_adds(variant.backbone, size) / batch_seconds
    return Rates(median(read), min(median(kept), median(read)), rate)


def _usual_first(files: Sequence[Path | bytes]) -> list[int]:
    """The numbers of the files, from the median of their sizes outwards."""
    sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size for file in files]
    rising, middle = sorted(range(len(files)), key=sizes.__getitem__), (len(files) - 1) / 2
    return [rising[place] for place in sorted(range(len(files)), key=lambda place: abs(place - middle))]


def _time(work: Callable[[int], object], seconds: float, *, least: int = 1, most: int = 1000) -> list[float]:
    """The seconds of each call of `work`, which gets its number: as many as fit into `seconds`, but `least` at least."""
    durations: list[float] = []
    while len(durations) < min(least, most) or (len(durations) < most and sum(durations) < seconds):
        start = perf_counter()
        work(len(durations))
        durations.append(perf_counter() - start)
    return durations
