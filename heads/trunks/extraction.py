"""Fills the feature store: a frozen trunk is run once on each sample that it was never run on, over all ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from time import monotonic
from typing import Any, Self

import torch
from torch import Tensor, nn

from heads.data.ahead import expect_places
from heads.data.feeds import Feed, deliver
from heads.data.inputs import Inputs
from heads.data.loading import num_loader_workers
from heads.data.readers import Job, Read, run_jobs
from heads.data.samples import Samples
from heads.distributed import num_ranks, rank, sum_over_ranks
from heads.features import FeatureStore, Key, TrunkFeatures
from heads.phases import Tap
from heads.spec import Precision
from heads.trunks.forward import Forward
from heads.trunks.trunk import Trunk

# Images of up to 224 px a batch, by the kind of device; the preprocessing says how many of other samples. Every batch is filled
# up, since kernels for fewer images add up in another order. A sample's features are then the same but for rounding, whichever
# samples share its batch after a kill or on a new night: to the bit if kernels treat all places in a batch alike.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
# The most that a kill can lose: a shard is written when it has this many bytes, or its first sample is this old. Writing takes
# twice as much memory. On a GPU it goes on beside the forward passes, but for the last shard, which is the smaller.
SHARD_BYTES = {"cpu": 32 * 2**20, "cuda": 16 * 2**20}
SHARD_SECONDS = 20.0


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
    # Places are numbered through all splits and views, so that few batches are filled up.
    feeds, keys_by_request = [request.dataset.feed(device) for request in requests], [request.keys for request in requests]
    ends, keys = list(accumulate(map(len, keys_by_request))), list(chain.from_iterable(keys_by_request))

    def find(place: int) -> tuple[int, int]:
        number = bisect_right(ends, place)
        return number, place - ends[number] + len(keys_by_request[number])

    def reader(place: int) -> Job:
        number, index = find(place)
        return feeds[number].reader(index, requests[number].view)

    def length(place: int) -> int:
        number, index = find(place)
        return feeds[number].length(index)

    while True:
        lacking = _lacking(trunk_features, requests, keys_by_request)
        # Every rank has looked before any writes, so that all share out the same samples.
        if not sum_over_ranks(torch.tensor([float(sum(map(len, lacking.values())))], device=device)).item():
            return num_forwarded
        for taps, places in sorted(lacking.items()):
            if length(places[0]):
                # Samples of like length share a batch, which costs as much as its longest one; all images are alike.
                expect_places([request.dataset for request in requests], ends, places)
                places = sorted(places, key=length)
            mine = places[rank() :: num_ranks()]
            if not mine:
                continue
            expect_places([request.dataset for request in requests], ends, mine)
            # Reading begins here, and goes on while the stages are built and captured.
            batches = _read(feeds[0], reader, mine, batch_size, device)
            forward = Forward(build(), taps, precision, len(mine) // batch_size, _example(feeds[0], batch_size, device))
            with _Writer(trunk_features, device, on_stored) as writer:
                for part, shard in _run(forward, batches, len(mine)):
                    writer.write([keys[place] for place in mine[part]], shard)
            num_forwarded += len(mine)
        sum_over_ranks(torch.zeros(1, device=device))


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


class _Writer:
    """Writes shards: on a GPU in a thread, one while the next is filled; else at once, since a CPU has no time to spare."""

    def __init__(self, trunk_features: TrunkFeatures, device: torch.device, on_stored: Callable[[int], None] | None) -> None:
        self._features, self._on_stored = trunk_features, on_stored
        self._thread = ThreadPoolExecutor(1, "shards") if device.type == "cuda" else None
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread:
            self._thread.shutdown()
        if kind is None:
            self._settle()

    def write(self, keys: Sequence[Key], shard: Callable[[], dict[str, Tensor]]) -> None:
        """Writes the shard that the function gives; raises what went wrong with the one before it."""
        if self._thread is None:
            self._write(keys, shard)
            self._tell(len(keys))
            return
        self._settle()
        self._pending = len(keys), self._thread.submit(self._write, keys, shard)

    def _write(self, keys: Sequence[Key], shard: Callable[[], dict[str, Tensor]]) -> None:
        self._features.write(keys, shard())

    def _settle(self) -> None:
        if self._pending:
            (number, written), self._pending = self._pending, None
            written.result()
            self._tell(number)

    def _tell(self, number: int) -> None:
        if self._on_stored:
            self._on_stored(number)


def _read(
    feed: Feed, reader: Callable[[int], Job], places: Sequence[int], batch_size: int, device: torch.device
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

    Of the first batches each process reads a quarter, then a half, so that a device gets the first one four times as early.
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


def _read_batch(collate: Callable[[Sequence[Any]], Any], batch_size: int, readers: Sequence[Job]) -> tuple[Any, int]:
    """Samples as one batch, filled up with the last one again, and how many they are."""
    items = [read() for read in readers]
    return collate([*items, *[items[-1]] * (batch_size - len(items))]), len(items)


def _example(feed: Feed, batch_size: int, device: torch.device) -> Tensor | None:
    """A batch of the shape of all others, if that is known before the first one is read."""
    if device.type != "cuda" or not feed.sample_shape:
        return None
    example = torch.zeros(batch_size, *feed.sample_shape, device=device)
    return example.to(memory_format=torch.channels_last) if example.ndim == 4 else example


def _run(
    forward: Forward, batches: Iterator[tuple[Tensor, int]], num_samples: int
) -> Iterator[tuple[slice, Callable[[], dict[str, Tensor]]]]:
    """Shards: the slice of the samples that each holds, and a function that gives their features by tap name, on the CPU."""
    parts: list[dict[str, Tensor]] = []
    first = num_bytes = end = 0
    start = monotonic()
    for batch, length in batches:
        limit = SHARD_BYTES.get(batch.device.type, SHARD_BYTES["cpu"])
        parts.append({name: tensor[:length] for name, tensor in forward(batch).items()})
        num_bytes += sum(tensor.nbytes for tensor in parts[-1].values())
        end += length
        if num_bytes >= limit or monotonic() - start >= SHARD_SECONDS or end == num_samples:
            ready = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None
            yield slice(first, end), partial(_joined, parts, ready)
            parts, first, num_bytes, start = [], end, 0, monotonic()
    forward.close()


def _joined(parts: list[dict[str, Tensor]], ready: torch.cuda.Event | None) -> dict[str, Tensor]:
    """The parts as one, once they are there; they are freed."""
    if ready:
        ready.synchronize()
    shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    parts.clear()
    return shard
