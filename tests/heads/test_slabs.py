"""Batches cross from reading processes in shared slabs: in order, whole, and never written over while they are in use."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from heads.data import readers, slabs
from heads.data.readers import Read, run_jobs
from heads.errors import ImageError

SLAB_BYTES = 4096
# One process has two jobs before it.
NUM_SLABS = 2 + slabs.NUM_SPARE


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of its own, with slabs of 4 KB."""
    monkeypatch.setattr(slabs, "SLAB_BYTES", SLAB_BYTES)
    readers._loader.cache_clear()
    yield
    readers._loader.cache_clear()


def numbered(number: int, num_bytes: int) -> tuple[Tensor, Tensor, int, int]:
    """Two tensors of a number, if they fit in the slab, the number, and the process."""
    content = slabs.empty_bytes(num_bytes).fill_(number % 251)
    return content, slabs.in_slab(torch.arange(number, number + 9)), number, os.getpid()


def bad() -> None:
    raise ImageError("no picture")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_right(read: Read, num_bytes: int) -> bool:
    content, row, number, _ = read.content
    return torch.equal(content, torch.full((num_bytes,), number % 251, dtype=torch.uint8)) and torch.equal(
        row, torch.arange(number, number + 9)
    )


def slab_of(tensor: Tensor) -> int | None:
    """The number of the slab that the tensor lies in."""
    ring = readers._loader(1).dataset.slabs._slabs  # type: ignore[attr-defined]
    starts = [slab.data_ptr() for slab in ring]
    return next((n for n, start in enumerate(starts) if start <= tensor.data_ptr() < start + SLAB_BYTES), None)


@pytest.mark.usefixtures("small_slabs")
def test_passes_of_one_process_keep_order_use_every_slab_and_leave_out_what_does_not_fit() -> None:
    sizes, processes, used = [3000 if number % 5 else 9000 for number in range(4 * NUM_SLABS)], set(), set()
    for _ in range(2):
        for number, read in enumerate(run_jobs([partial(numbered, i, size) for i, size in enumerate(sizes)], 1)):
            assert read.content[2] == number
            assert is_right(read, sizes[number])
            assert (slab_of(read.content[0]) is None) == (sizes[number] > SLAB_BYTES)
            assert slab_of(read.content[1]) is not None, "the small one fits beside it"
            used.add(slab_of(read.content[1]))
            processes.add(read.content[3])
            read.release()
    assert len(processes) == 1
    assert os.getpid() not in processes
    assert used == set(range(NUM_SLABS))


@pytest.mark.usefixtures("small_slabs")
def test_what_is_in_use_is_not_written_over_also_if_nothing_is_ever_given_back() -> None:
    reads = list(run_jobs([partial(numbered, number, 3000) for number in range(3 * NUM_SLABS)], 1))
    assert all(is_right(read, 3000) for read in reads)
    assert [slab_of(read.content[0]) is not None for read in reads] == [True] * NUM_SLABS + [False] * 2 * NUM_SLABS
    # A new pass takes all of them back; what is given back late, for the pass before, changes nothing.
    found = []
    for number, read in enumerate(run_jobs([partial(numbered, 100 + i, 3000) for i in range(3 * NUM_SLABS)], 1)):
        reads[number].release()
        found.append(read)
    assert all(is_right(read, 3000) for read in found)


@pytest.mark.usefixtures("small_slabs")
def test_an_error_comes_in_its_turn_and_a_killed_process_is_one_too() -> None:
    good = partial(numbered, 7, 3000)
    reads = run_jobs([good, good, bad, *[good] * 9], 1)
    assert is_right(next(reads), 3000)
    assert is_right(next(reads), 3000)
    with pytest.raises(ImageError, match="no picture"):
        next(reads)
    assert all(is_right(read, 3000) for read in run_jobs([good] * 3, 1))
    with pytest.raises(RuntimeError, match=r"killed|exited"):
        list(run_jobs([good, killed, *[good] * 9], 1))
