"""The thumbnails of a data version's images, which the feature store keeps: an image is read for its own once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flows.records import DataVersion, Sample
from flows.sample_files import files_of, locate, prefetch
from heads.data.decoding import decode
from heads.data.loading import num_loader_workers
from heads.data.near_duplicates.thumbnails import SIDE_PX, thumbnail_of
from heads.data.readers import run_jobs
from heads.features import Features, FeatureStore, Key, trunk_id

TAP = "grey"
# Incremented when a thumbnail of the same image would be another one.
FORMAT = 1
# So many images a process reads at once, and so many thumbnails, of 2 kB, are the most that a kill can lose.
BATCH, SHARD = 64, 4096


def store_thumbnails(store: FeatureStore, version: DataVersion, samples: Sequence[Sample], device: torch.device) -> int:
    """Read the images of samples that have no thumbnail yet, and store it; gives how many were read. Raises ImageError."""
    thumbnails, by_digest = store.trunk(thumbnails_id()), {sample.pixel_digest: sample for sample in samples}
    store.describe(thumbnails_id(), {"backbone": "thumbnails", "image_size_px": SIDE_PX, "dtype": "float16", "views": "plain"})
    lacking = [by_digest[key.digest] for key in thumbnails.missing([Key(digest) for digest in by_digest], [TAP])]
    prefetch(version, files_of(version, lacking), "thumbnails")
    batches = [lacking[start : start + BATCH] for start in range(0, len(lacking), BATCH)]
    shard, read = list[Tensor](), 0
    # Located here, where the version is: what is sent to other processes is small.
    jobs = (partial(_read, [locate(version, sample) for sample in batch]) for batch in batches)
    for made in run_jobs(jobs, num_loader_workers(device)):
        shard.append(made.content.clone())
        made.release()
        num = sum(map(len, shard))
        if num >= SHARD or read + num == len(lacking):
            keys = [Key(sample.pixel_digest) for sample in lacking[read : read + num]]
            thumbnails.write(keys, {TAP: torch.cat(shard)})
            shard, read = [], read + num
    return read


def open_thumbnails(store: FeatureStore, samples: Sequence[Sample]) -> Features:
    """The thumbnails of these samples, in their order."""
    return store.trunk(thumbnails_id()).open([Key(sample.pixel_digest) for sample in samples], [TAP])


def thumbnails_id() -> str:
    """Under which the feature store keeps thumbnails, as it keeps a trunk's features."""
    return trunk_id({"thumbnails": FORMAT, "side_px": SIDE_PX})


def _read(files: Sequence[Path | bytes]) -> Tensor:
    return torch.stack([thumbnail_of(decode(file)) for file in files])
