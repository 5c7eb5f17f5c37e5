"""How many parts of a pass, each as large as processes read them, make one batch on a GPU: as its memory is measured to allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from heads.trunks.forward import MIN_BATCHES

NUMBERS = (4, 2)
# Of the memory that is free: other processes may take some, and for a moment there are two graphs.
FREE_SHARE = 0.25
# For a larger batch kernels are chosen once more, and larger passes run before its graph is captured. So many batches save more.
MIN_JOINED_BATCHES = 8 * MIN_BATCHES
# What is read, beside the features: the parts, the batch of them, and the memory that a graph reads.
NUM_COPIES = 3


def choose_number(run: Callable[[Tensor], object], example: Tensor | None, num_parts: int) -> int:
    """How many of so many parts make a batch: `run` is called on an example of one, to see how much of a GPU's memory it takes.

    1 without an example, so if parts differ in shape, or if it is not on a GPU.
    """
    if example is None or not example.is_cuda or num_parts < NUMBERS[-1] * MIN_JOINED_BATCHES:
        return 1
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(example.device)
    before = torch.cuda.memory_allocated(example.device)
    try:
        run(example)
        torch.cuda.synchronize(example.device)
    except torch.OutOfMemoryError:
        return 1
    taken = torch.cuda.max_memory_allocated(example.device) - before
    torch.cuda.empty_cache()
    return number_that_fits(taken + NUM_COPIES * example.nbytes, torch.cuda.mem_get_info(example.device)[0], num_parts)


def number_that_fits(part_bytes: int, free_bytes: int, num_parts: int) -> int:
    """How many parts make a batch, if one takes so many bytes: the most that leave memory free, and batches enough."""
    for number in NUMBERS:
        if number * part_bytes <= FREE_SHARE * free_bytes and num_parts >= number * MIN_JOINED_BATCHES:
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
