"""How many parts of a pass, each as large as processes read them, make one batch on a GPU: as its memory is measured to allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from heads.trunks.forward import MIN_BATCHES, NUM_WARM_UPS

NUMBERS = (4, 2)
# Of the memory that is free: other processes may take some, and for a moment there are two graphs.
FREE_SHARE = 0.25
# Of the seconds of a pass, what larger batches are taken to save where parts keep a GPU busy already.
SAVED_SHARE = 0.04
# What is read, beside the features: the parts, the batch of them, and the memory that a graph reads.
NUM_COPIES = 3


@dataclass(frozen=True)
class PartCost:
    """What one part takes of a GPU: bytes, seconds, and seconds of the first one, for whose shape kernels are chosen or built."""

    num_bytes: int
    seconds: float
    first_seconds: float


def choose_number(run: Callable[[Tensor], object], example: Tensor | None, num_parts: int) -> int:
    """How many of so many parts make a batch: `run` is called on an example of one, to see what it takes of a GPU.

    1 without an example, so if parts differ in shape; if it is not on a GPU; and if there are too few to save anything.
    """
    if example is None or not example.is_cuda or num_parts * SAVED_SHARE < NUMBERS[-1] * NUM_WARM_UPS:
        return 1
    try:
        cost = _measure(run, example)
    except torch.OutOfMemoryError:
        return 1
    torch.cuda.empty_cache()
    return number_that_pays(cost, torch.cuda.mem_get_info(example.device)[0], num_parts)


def _measure(run: Callable[[Tensor], object], example: Tensor) -> PartCost:
    device, seconds = example.device, []
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for _ in range(2):
        torch.cuda.synchronize(device)
        start = perf_counter()
        run(example)
        torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    taken = torch.cuda.max_memory_allocated(device) - before
    return PartCost(taken + NUM_COPIES * example.nbytes, seconds[1], seconds[0])


def number_that_pays(cost: PartCost, free_bytes: int, num_parts: int) -> int:
    """How many parts make a batch: the most for which memory is left, batches are enough for a graph, and a pass takes less.

    Kernels are chosen for the new shape as they were for a part, and larger passes run before their graph is captured.
    """
    for number in NUMBERS:
        spent = cost.first_seconds - cost.seconds + NUM_WARM_UPS * number * cost.seconds
        pays = SAVED_SHARE * num_parts * cost.seconds >= spent and num_parts >= number * MIN_BATCHES
        if pays and number * cost.num_bytes <= FREE_SHARE * free_bytes:
            return number
    return 1


def joined(parts: Iterator[tuple[Tensor, int]], number: int) -> Iterator[tuple[Tensor, int]]:
    """So many parts at a time as one batch, with how many samples it holds before its last part is filled up.

    The last ones, if too few are left for a batch, come one by one: kernels were chosen for parts too, when they were measured.
    """
    waiting = list[tuple[Tensor, int]]()
    for part in parts:
        waiting.append(part)
        if len(waiting) == number:
            yield _as_one(waiting)
            waiting = []
    yield from waiting


def _as_one(parts: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    samples, sizes = zip(*parts, strict=True)
    return samples[0] if len(samples) == 1 else torch.cat(samples), sum(sizes)
