"""Fills the feature store: a frozen trunk is run once on each sample that it was never run on, over all ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn

from heads.data.feeds import Feed, deliver
from heads.data.inputs import Inputs
from heads.data.loading import num_loader_workers
from heads.data.order import by_length
from heads.data.prefetch import prefetch_places
from heads.data.readers import Read, ReadJob, run_jobs
from heads.data.samples import Samples
from heads.distributed import num_ranks, rank, sum_over_ranks
from heads.features import FeatureStore, Key, TrunkFeatures
from heads.features.keys import token_keys
from heads.phases import Tap
from heads.spec import Precision
from heads.trunks.forward import Forward, run_stages
from heads.trunks.joining import choose_number, joined
from heads.trunks.shards import ShardWriter, cut_in_shards
from heads.trunks.trunk import Trunk, is_by_token, num_rows

# Images of up to 224 px that are read together, by the kind of device; the preprocessing says how many of other samples. On a CPU
# they are a batch, always filled up, since kernels for fewer images add up in another order: a sample's features are then the
# same whichever samples share its batch after a kill or on a new night, to the bit if kernels treat all places in a batch alike.
# On a GPU several are joined as measured, and features are the same but for rounding.
BATCH_SIZES = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True)
class ExtractionRequest:
    """The taps to store of one view of a data set's samples."""

    dataset: Samples
    view: int
    taps: Collection[Tap]

    @property
    def keys(self) -> list[Key]:
        """The feature store's keys of the samples, in order."""
        return [Key(digest, self.view) for digest in self.dataset.digests]


def count_missing(store: FeatureStore, trunk: Trunk, taps: Collection[Tap], digests: Sequence[str], view: int) -> int:
    """How many distinct samples lack one of the taps in this view."""
    return len(store.trunk(trunk.id).missing([Key(digest, view) for digest in digests], [tap.name for tap in taps]))


def extract(
    build: Callable[[], nn.Sequential],
    trunk: Trunk,
    requests: Sequence[ExtractionRequest],
    store: FeatureStore,
    *,
    device: torch.device,
    precision: Precision,
    on_stored: Callable[[int], None] | None = None,
) -> int:
    """Stores all requested features of a trunk that are missing, and gives how many samples this rank forwarded for it.

    `build` gives the stages of the trunk's whole backbone, frozen and on `device`, and is called only if a sample is missing;
    only stages up to the last tap run. Every rank of an initialised torch.distributed group must call this with the same
    requests; each takes its share. `on_stored` is called with the number of samples of each shard that was written. A kill at
    any point loses a shard at most.
    """
    trunk_features, num_forwarded = store.trunk(trunk.id), 0
    batch_size = trunk.preprocess.batch_size(_most_together(device))
    places = _Places(requests, device)
    while True:
        lacking = _lacking(trunk_features, requests, places.keys_by_request)
        # Every rank has looked before any writes, so that all share out the same samples.
        if not sum_over_ranks(torch.tensor([float(sum(map(len, lacking.values())))], device=device)).item():
            return num_forwarded
        for taps, lacked in sorted(lacking.items()):
            mine = places.ordered(lacked)[rank() :: num_ranks()]
            if not mine:
                continue
            places.prefetch(mine)
            feed = places.feeds[0]
            # Reading begins here, and goes on while the stages are built and captured.
            batches = _read(feed, places.reader, mine, batch_size, device)
            stages, num_parts = build(), len(mine) // batch_size
            run = partial(run_stages, stages, taps, precision)
            number = choose_number(run, _example(feed, batch_size, device), num_parts)
            forward = Forward(stages, taps, precision, num_parts // number, _example(feed, number * batch_size, device))
            of_tokens = [tap for tap in taps if is_by_token(trunk.backbone, [tap])]
            num_rows = {tap.name: places.num_rows(trunk.backbone, tap, mine) for tap in of_tokens}
            with ShardWriter(trunk_features, device, on_stored) as writer:
                for part, shard in cut_in_shards(forward, joined(batches, number), len(mine), num_rows):
                    keys = [places.keys[place] for place in mine[part]]
                    writer.write(keys, shard, {name: token_keys(keys, numbers[part]) for name, numbers in num_rows.items()})
            num_forwarded += len(mine)
        sum_over_ranks(torch.zeros(1, device=device))


class _Places:
    """The samples of several requests, numbered through all splits and views, so that few batches are filled up."""

    def __init__(self, requests: Sequence[ExtractionRequest], device: torch.device) -> None:
        self._requests = requests
        self.feeds, self.keys_by_request = [one.dataset.feed(device) for one in requests], [one.keys for one in requests]
        self.keys, self._ends = list(chain.from_iterable(self.keys_by_request)), list(accumulate(map(len, self.keys_by_request)))

    def _find(self, place: int) -> tuple[int, int]:
        number = bisect_right(self._ends, place)
        return number, place - self._ends[number] + len(self.keys_by_request[number])

    def reader(self, place: int) -> ReadJob:
        """What reads the sample of a place, here or in another process."""
        number, index = self._find(place)
        return self.feeds[number].reader(index, self._requests[number].view)

    def ordered(self, places: Sequence[int]) -> Sequence[int]:
        """These places by length, images as they are: none is read to know how long it is."""
        if not self._length(places[0]):
            return places
        self.prefetch(places)
        return by_length(places, self._length)

    def _length(self, place: int) -> int:
        number, index = self._find(place)
        return self.feeds[number].length(index)

    def num_rows(self, backbone: str, tap: Tap, places: Sequence[int]) -> list[int]:
        """How many tokens the texts of these places have at the tap."""
        return [num_rows(backbone, tap, self._length(place)) for place in places]

    def prefetch(self, places: Sequence[int]) -> None:
        """Say that these are read next, in this order."""
        prefetch_places([request.dataset for request in self._requests], self._ends, places)


def _lacking(
    trunk_features: TrunkFeatures, requests: Sequence[ExtractionRequest], keys_by_request: Sequence[Sequence[Key]]
) -> dict[tuple[Tap, ...], list[int]]:
    """The places of samples by the taps that they lack; of equal samples in a dataset only the first."""
    lacking_by_taps: dict[tuple[Tap, ...], list[int]] = defaultdict(list)
    first = 0
    for request, keys in zip(requests, keys_by_request, strict=True):
        lacking = dict[Key, tuple[Tap, ...]]()
        for tap in sorted(request.taps):
            lacking.update({key: (*lacking.get(key, ()), tap) for key in trunk_features.missing(keys, [tap.name])})
        for place, key in enumerate(keys if lacking else (), start=first):
            if key in lacking:
                lacking_by_taps[lacking.pop(key)].append(place)
        first += len(keys)
    return dict(lacking_by_taps)


def _most_together(device: torch.device) -> int:
    return BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"])


def _read(
    feed: Feed, reader: Callable[[int], ReadJob], places: Sequence[int], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, int]]:
    """The samples of these places in batches on the device, and how many each holds before it is filled up.

    Other processes begin to read at once.
    """
    num_processes = num_loader_workers(device) if feed.is_costly else 0
    parts = cut_in_parts(len(places), batch_size, num_processes)
    # Made one by one: those of a whole pass would keep the reading processes waiting.
    jobs = (partial(_read_batch, feed.collate, size, list(map(reader, places[start : start + size]))) for start, size in parts)
    return _delivered(feed, run_jobs(jobs, num_processes), batch_size, device)


def cut_in_parts(num_samples: int, batch_size: int, num_processes: int) -> Iterator[tuple[int, int]]:
    """Where each part that a process reads begins, and its size: a batch.

    Of the first batches each process reads a quarter, then a half, so that a device gets the first part four times as early.
    """
    start = 0
    for pieces in (4, 2) if batch_size % 4 == 0 else ():
        size = batch_size // pieces
        num_parts = min(num_processes, (num_samples - start) // size) // pieces * pieces
        yield from ((start + number * size, size) for number in range(num_parts))
        start += num_parts * size
    yield from ((begin, batch_size) for begin in range(start, num_samples, batch_size))


def _delivered(feed: Feed, reads: Iterator[Read], batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    def finish(read: Read) -> tuple[Inputs, dict[str, Tensor]]:
        made = feed.finish(read.content[0])
        read.release()
        return made

    pieces: list[Tensor] = []
    for read, inputs, _ in deliver(reads, finish, device):
        assert isinstance(inputs.features, Tensor)
        pieces.append(inputs.features)
        if sum(map(len, pieces)) == batch_size:
            yield (pieces[0] if len(pieces) == 1 else torch.cat(pieces)), (read.content[1] if len(pieces) == 1 else batch_size)
            pieces = []


def _read_batch(collate: Callable[[Sequence[Any]], Any], batch_size: int, readers: Sequence[ReadJob]) -> tuple[Any, int]:
    """Samples as one batch, filled up with the last one again, and how many they are."""
    items = [read() for read in readers]
    return collate([*items, *[items[-1]] * (batch_size - len(items))]), len(items)


def _example(feed: Feed, batch_size: int, device: torch.device) -> Tensor | None:
    """A batch of the shape of all others, if that is known before the first one is read."""
    if device.type != "cuda" or not feed.sample_shape:
        return None
    example = torch.zeros(batch_size, *feed.sample_shape, device=device)
    return example.to(memory_format=torch.channels_last) if example.ndim == 4 else example
