"""Processes that read samples, started once: a pass over a few thousand images takes no longer than their start would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.multiprocessing import get_start_method
from torch.utils.data import DataLoader, Dataset, Sampler

from heads.data.slabs import NUM_SPARE, Slabs

# Reads samples, in whichever process it runs.
ReadJob = Callable[[], Any]
# Jobs that each process has before it: one that it reads, and the next.
JOBS_AHEAD = 2


class Read(NamedTuple):
    """What a job gave, until `release` is called: its memory may then be written to, once the current stream has come so far."""

    content: Any
    release: Callable[[], None]


class _Jobs(Dataset[Any]):
    """In a reading process: what is asked for is itself the function that reads it, and the number of the slab it may fill."""

    def __init__(self, slabs: Slabs | None) -> None:
        self.slabs = slabs

    def __getitem__(self, asked: tuple[int | None, ReadJob]) -> tuple[int | None, Any]:
        number, job = asked
        return number, job() if number is None or not self.slabs else self.slabs.fill(number, job)


class _Asked(Sampler[tuple[int | None, ReadJob]]):
    """The jobs of a pass, replaced for the next one while the processes live on."""

    def __init__(self, slabs: Slabs | None) -> None:
        self.jobs: Iterable[ReadJob] = ()
        self._slabs = slabs

    def __iter__(self) -> Iterator[tuple[int | None, ReadJob]]:
        # Asked for the first job when the processes are done with those of the pass before.
        if self._slabs:
            self._slabs.start_pass()
        for job in self.jobs:
            yield self._slabs.take() if self._slabs else None, job


def run_jobs(jobs: Iterable[ReadJob], num_processes: int) -> Iterator[Read]:
    """What each of the jobs gives, in order, tensors in pinned memory; with no processes they run here, when they are asked for.

    Jobs are sent to the processes, so they should be small. What one raises is raised here, and RuntimeError if a process is
    killed. The processes begin at once. One pass is made at a time. What jobs write to `heads.data.slabs` is not copied on its
    way here.
    """
    if not num_processes:
        return (Read(job(), _nothing) for job in jobs)
    loader = _loader(num_processes)
    assert isinstance(loader.sampler, _Asked)
    assert isinstance(loader.dataset, _Jobs)
    loader.sampler.jobs = jobs
    return _look_up(iter(loader), loader.dataset.slabs)


def _look_up(reads: Iterator[tuple[int | None, Any]], slabs: Slabs | None) -> Iterator[Read]:
    for number, read in reads:
        if number is None or not slabs:
            yield Read(read, _nothing)
        else:
            yield Read(slabs.look_up(number, read), slabs.lend(number))


@cache
def _loader(num_processes: int) -> DataLoader[Any]:
    # Only a process that is forked has the memory of this one.
    slabs = Slabs(JOBS_AHEAD * num_processes + NUM_SPARE) if get_start_method() == "fork" else None
    return DataLoader(
        _Jobs(slabs),
        batch_size=None,
        sampler=_Asked(slabs),
        num_workers=num_processes,
        prefetch_factor=JOBS_AHEAD,
        persistent_workers=True,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def _as_it_is(read: Any) -> Any:
    return read


def _nothing() -> None:
    pass
