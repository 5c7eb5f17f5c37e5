"""Processes that read samples, started once: a pass over a few thousand images takes no longer than their start would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Job = Callable[[], Any]


class _Jobs(Dataset[Any]):
    """In a reading process: what is asked for is itself the function that reads it."""

    def __getitem__(self, job: Job) -> Any:
        return job()


class _Asked(Sampler[Job]):
    """The jobs of a pass, replaced for the next one while the processes live on."""

    jobs: Sequence[Job] = ()

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)


def run_jobs(jobs: Sequence[Job], num_processes: int) -> Iterator[Any]:
    """What each of the jobs gives, in order, tensors in pinned memory; with no processes they run here, when they are asked for.

    Jobs are sent to the processes, so they should be small. What one raises is raised here. One pass is made at a time.
    """
    if not num_processes:
        yield from (job() for job in jobs)
        return
    loader = _loader(num_processes)
    assert isinstance(loader.sampler, _Asked)
    loader.sampler.jobs = jobs
    yield from loader


@cache
def _loader(num_processes: int) -> DataLoader[Any]:
    return DataLoader(
        _Jobs(),
        batch_size=None,
        sampler=_Asked(),
        num_workers=num_processes,
        persistent_workers=True,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def _as_it_is(read: Any) -> Any:
    return read
