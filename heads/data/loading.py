"""Which samples each rank reads in each step, and the loaders that read them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from heads.data.feeds import deliver
from heads.data.inputs import Inputs
from heads.data.labels import has_label
from heads.data.prefetch import prefetch
from heads.data.samples import Samples
from heads.distributed import num_ranks, rank
from heads.errors import HeadsError


@dataclass(frozen=True)
class Step:
    """The numbers of a step's samples on all ranks (`everywhere`) and on this one (`here`), filled up so that ranks have as many.

    `weights` is 1 for a sample of this rank and 0 for one that fills up.
    """

    everywhere: Tensor
    here: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Batch:
    """A step's inputs, labels (as in `heads.data.labels`) and weights (N) on this rank.

    `num_labels` is, by target, how many labels all ranks have in the batches that make one update together; `updates` is
    whether this batch is the last of them.
    """

    inputs: Inputs
    labels: dict[str, Tensor]
    weights: Tensor
    num_labels: dict[str, int]
    updates: bool


def shuffle(length: int, seed: int, epoch: int) -> Tensor:
    """The numbers below `length` in the order of an epoch, the same on every rank."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator)


def split_steps(order: Tensor, batch_size: int, *, rank: int, num_ranks: int, least: int = 1) -> list[Step]:
    """The steps that read `order` once, `batch_size` samples each over all ranks, the last ones fewer.

    No rank gets fewer than `least`: a rest too small for that joins the step before it, or is filled up if it is the only one.
    """
    chunks = list(torch.split(order, batch_size))
    if len(chunks) > 1 and len(chunks[-1]) < least * num_ranks:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return [_share(chunk, rank, num_ranks, least) for chunk in chunks]


def _share(chunk: Tensor, rank: int, num_ranks: int, least: int) -> Step:
    length = max(least, -(-len(chunk) // num_ranks))
    own = chunk[rank::num_ranks]
    filling = chunk[:1].expand(length - len(own))
    return Step(chunk, torch.cat([own, filling]), torch.cat([torch.ones(len(own)), torch.zeros(len(filling))]))


class _Batches(Sampler[list[int]]):
    """The batches of the current epoch, replaced for each epoch while the loader and its workers live on."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        return (step.here.tolist() for step in self.steps)


class Loader(ABC):
    """The batches of a dataset on `device`, each of them this rank's share of a step.

    `batch_size` is over all ranks; `accumulate` batches make one update together, at an epoch's end maybe fewer. In
    training a rank gets at least two samples a step, since BatchNorm has no statistics of one. Raises HeadsError on
    an empty dataset.
    """

    # How many samples one pass forwards through the whole network.
    num_forwarded = 0

    def __init__(
        self, dataset: Samples, batch_size: int, device: torch.device, *, training: bool = False, accumulate: int = 1
    ) -> None:
        if not len(dataset):
            raise HeadsError(f"there are no samples to {'train on' if training else 'evaluate'}; give at least one")
        self.dataset, self.batch_size, self.device, self.training = dataset, batch_size, device, training
        self.accumulate = accumulate
        self._batches = _Batches()
        self._set_order(torch.arange(len(dataset)))

    @property
    def steps(self) -> list[Step]:
        """The steps of the current epoch, for the ranks that train together now: one that trains by itself has all samples."""
        if self._world != (rank(), num_ranks()):
            self._set_order(self._order)
        return self._batches.steps

    def __len__(self) -> int:
        """How many steps an epoch has."""
        return len(self.steps)

    @property
    def num_updates(self) -> int:
        """How many updates an epoch has."""
        return -(-len(self) // self.accumulate)

    def __iter__(self) -> Iterator[Batch]:
        num_labels: dict[str, int] = {}
        for number, (step, (inputs, labels)) in enumerate(zip(self.steps, self._read(), strict=True)):
            if number % self.accumulate == 0:
                together = torch.cat([step.everywhere for step in self.steps[number : number + self.accumulate]])
                num_labels = {target: self._count(target, together) for target in labels}
            yield Batch(
                inputs=inputs,
                labels={t: x.to(self.device, non_blocking=True) for t, x in labels.items()},
                weights=step.weights.to(self.device, non_blocking=True),
                num_labels=num_labels,
                updates=(number + 1) % self.accumulate == 0 or number + 1 == len(self),
            )

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Sets the epoch, whose order and augmentation the next batches have."""
        self.dataset.set_epoch(epoch)
        self._set_order(shuffle(len(self.dataset), seed, epoch))

    @abstractmethod
    def _read(self) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
        """The inputs, on the device, and the labels of this rank's share of each step."""

    def _set_order(self, order: Tensor) -> None:
        self._order, self._world, least = order, (rank(), num_ranks()), 2 if self.training else 1
        self._batches.steps = split_steps(order, self.batch_size, rank=rank(), num_ranks=num_ranks(), least=least)

    def _count(self, target: str, indices: Tensor) -> int:
        return int(has_label(self.dataset.labels[target][indices]).sum())


class Loaders(NamedTuple):
    """The loaders of a phase's training and validation."""

    train: Loader
    val: Loader


class SampleLoader(Loader):
    """The samples themselves, varied anew each epoch, read in `num_workers` more processes."""

    def __init__(
        self,
        dataset: Samples,
        batch_size: int,
        device: torch.device,
        *,
        training: bool = False,
        num_workers: int | None = None,
        accumulate: int = 1,
        channels_last: bool = True,
    ) -> None:
        super().__init__(dataset, batch_size, device, training=training, accumulate=accumulate)
        self.num_forwarded = len(dataset)
        self._channels_last = channels_last
        num_workers = num_loader_workers(device) if num_workers is None else num_workers
        self._feed = dataset.feed(device)
        self._loader: DataLoader[Any] = DataLoader(
            self._feed,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=self._feed.collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )

    def _read(self) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
        prefetch(self.dataset, [index for step in self.steps for index in step.here.tolist()])
        for _, inputs, labels in deliver(self._loader, self._feed.finish, self.device, channels_last=self._channels_last):
            yield inputs, labels


def num_loader_workers(device: torch.device) -> int:
    """How many processes read samples for a rank on `device`."""
    # Measured on CPU: with a process a core already training, loader processes only take its time.
    return (os.cpu_count() or 1) // num_ranks() if device.type == "cuda" else 0
