"""Fills the feature store: what a frozen trunk gives for samples that it was never run on, each once, over all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from heads.data.dataset import ImageDataset
from heads.data.loading import num_loader_workers
from heads.distributed import num_ranks, rank, sum_over_ranks
from heads.features import FeatureStore, Key, TrunkFeatures
from heads.model.precision import autocast
from heads.phases import Tap
from heads.spec import Precision
from heads.trunks.trunk import Trunk, take

# By the kind of device, for images of up to 224 px; of larger ones as many as have so many pixels. Every batch is filled up to
# it, since kernels for fewer images add up in another order. What a sample gives is then the same but for rounding, whichever
# samples a kill or a new night brings it together with: to the bit where kernels take all places in a batch alike, as oneDNN's
# do on some processors.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
FULL_SIDE_PX = 224
# What a kill can lose: a shard is written when it has this many bytes, or this old is its first sample. It takes twice as much
# memory while it is.
SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 20.0
LAYOUT = torch.channels_last


@dataclass(frozen=True)
class ExtractionRequest:
    """The taps to store of one view of a data set's images."""

    dataset: ImageDataset
    view: int
    taps: Collection[Tap]

    @property
    def keys(self) -> list[Key]:
        """What the store calls its samples, in order."""
        return [Key(digest, self.view) for digest in self.dataset.digests]


class _View(Dataset[Tensor]):
    """The images of what is wanted, as the network sees them."""

    def __init__(self, wanted: ExtractionRequest) -> None:
        self._wanted = wanted

    def __len__(self) -> int:
        return len(self._wanted.dataset)

    def __getitem__(self, index: int) -> Tensor:
        return self._wanted.dataset.view(index, self._wanted.view)[0]


def count_missing(store: FeatureStore, trunk: Trunk, taps: Collection[Tap], digests: Sequence[str], view: int) -> int:
    """How many distinct samples lack one of the taps in this view."""
    return len(store.trunk(trunk.id).missing([Key(digest, view) for digest in digests], [tap.name for tap in taps]))


def extract(
    build: Callable[[], nn.Sequential],
    trunk: Trunk,
    wanted: Sequence[ExtractionRequest],
    store: FeatureStore,
    *,
    device: torch.device,
    precision: Precision,
    on_stored: Callable[[int], None] | None = None,
) -> int:
    """How many images this rank forwarded until the store held all that is wanted of the trunk.

    `build` gives the stages of the whole backbone as the trunk names it, frozen and on `device`, and is asked only where a
    sample is missing; no more of them run than the taps ask for.
    Every rank of an initialised torch.distributed group must ask, for the same; each takes its share. `on_stored` is called
    with the number of samples of each shard that was written. Killed at any point, it loses a shard at most.
    """
    trunk_features, num_forwarded = store.trunk(trunk.id), 0
    # Places count through all splits and views, so that few batches are filled up.
    images: ConcatDataset[Tensor] = ConcatDataset([_View(each) for each in wanted])
    while True:
        lacking = _lacking(trunk_features, wanted)
        # All have looked before any writes, so that their shares are of one whole.
        if not sum_over_ranks(torch.tensor([float(sum(map(len, lacking.values())))], device=device)).item():
            return num_forwarded
        for taps, places in sorted(lacking.items()):
            mine = places[rank() :: num_ranks()]
            given = _run(build(), taps, Subset(images, mine), trunk.preprocess.image_size_px, device, precision) if mine else ()
            for part, rows in given:
                keys = [_key(wanted, place) for place in mine[part]]
                trunk_features.write(keys, rows)
                num_forwarded += len(keys)
                if on_stored:
                    on_stored(len(keys))
                # Not beside the next shard, which fills meanwhile.
                del rows
        sum_over_ranks(torch.zeros(1, device=device))


def _lacking(trunk_features: TrunkFeatures, wanted: Sequence[ExtractionRequest]) -> dict[tuple[Tap, ...], list[int]]:
    """The places of the images that lack the same taps, by these; of equal images of a set the first."""
    found: dict[tuple[Tap, ...], list[int]] = defaultdict(list)
    first = 0
    for each in wanted:
        keys, lacking = each.keys, dict[Key, tuple[Tap, ...]]()
        for tap in sorted(each.taps):
            lacking.update({key: (*lacking.get(key, ()), tap) for key in trunk_features.missing(keys, [tap.name])})
        for place, key in enumerate(keys, start=first):
            if key in lacking:
                found[lacking.pop(key)].append(place)
        first += len(keys)
    return dict(found)


def _key(wanted: Sequence[ExtractionRequest], place: int) -> Key:
    for each in wanted:
        if place < len(each.dataset):
            return Key(each.dataset.digests[place], each.view)
        place -= len(each.dataset)
    raise IndexError(place)


def _run(
    stages: nn.Sequential,
    taps: Sequence[Tap],
    images: Subset[Tensor],
    image_size_px: int,
    device: torch.device,
    precision: Precision,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Shards of the images: which of them, and their features by tap name, on the CPU."""
    batch_size = _batch_size(device, image_size_px)
    loader = DataLoader(
        images,
        batch_size=batch_size,
        num_workers=num_loader_workers(device),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    parts: list[dict[str, Tensor]] = []
    first = num_bytes = 0
    start = monotonic()
    for number, batch in enumerate(loader):
        rows = _look(stages, taps, _filled(batch, batch_size).to(device, non_blocking=True, memory_format=LAYOUT), precision)
        parts.append({name: tensor[: len(batch)] for name, tensor in rows.items()})
        num_bytes += sum(tensor.nbytes for tensor in parts[-1].values())
        end = number * batch_size + len(batch)
        if num_bytes >= SHARD_BYTES or monotonic() - start >= SHARD_SECONDS or end == len(images):
            shard, parts = _joined(parts), []
            yield slice(first, end), shard
            del shard
            first, num_bytes, start = end, 0, monotonic()


def _batch_size(device: torch.device, image_size_px: int) -> int:
    most = BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"])
    return max(1, min(most, most * FULL_SIDE_PX**2 // image_size_px**2))


def _filled(images: Tensor, batch_size: int) -> Tensor:
    """The images (N, ...) and, up to the batch size, the last one again."""
    if len(images) == batch_size:
        return images
    return torch.cat([images, images[-1:].expand(batch_size - len(images), *images.shape[1:])])


def _look(stages: nn.Sequential, taps: Sequence[Tap], images: Tensor, precision: Precision) -> dict[str, Tensor]:
    rows: dict[str, Tensor] = {}
    features = images
    with torch.inference_mode(), autocast(images.device, precision):
        for number in range(max(tap.stage for tap in taps) + 1):
            features = stages[number](features)
            rows |= {tap.name: take(tap, features).contiguous().cpu() for tap in taps if tap.stage == number}
    return rows


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
