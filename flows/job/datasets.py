"""A split of the job's data version as `heads` reads it: files, label numbers, masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from flows.job.job import Job
from flows.records import DataVersion, Sample
from flows.workspace import locate, locate_mask
from heads.data.dataset import DEFAULT_CACHE_BYTES, ImageDataset
from heads.data.images import Preprocess, preprocess_for
from heads.data.masks import MaskFile, Masks
from heads.spec import Augment, Head, Variant
from heads.tasks.table import TASKS


class Images:
    """The images of a job's splits as datasets; works that see them the same way share one, and the pictures it keeps."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._open: dict[tuple[Any, ...], ImageDataset] = {}
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for sample in job.version.samples:
            self._samples[sample.split].append(sample)

    def open(self, split: str, variant: Variant) -> ImageDataset:
        """The split as the variant sees it; one dataset a split stays open, the one last asked for."""
        key = (split, tuple((head.target, head.task, head.ignore) for head in variant.heads), *self._view(split, variant))
        if key not in self._open:
            for old in [k for k in self._open if k[0] == split]:
                del self._open[old]
            self._open[key] = self.read(split, variant)
        return self._open[key]

    def read(self, split: str, variant: Variant, cache_bytes: int = DEFAULT_CACHE_BYTES) -> ImageDataset:
        """A dataset of its own that keeps as many bytes of pictures."""
        labels, masks = read_labels(self.job, self._samples[split], variant.heads)
        preprocess, augment, flip, seed = self._view(split, variant)
        return ImageDataset(
            _Files(self.job.version, self._samples[split]),
            labels,
            preprocess,
            augment,
            seed,
            flip=flip,
            masks=masks,
            cache_bytes=cache_bytes,
            digests=self.digests(split),
        )

    def digests(self, split: str) -> list[str]:
        """What names the pixels of the split's samples, in order: their digests, wherever these were always read alike."""
        return [sample.pixel_digest for sample in self._samples[split]]

    def _view(self, split: str, variant: Variant) -> tuple[Preprocess, Augment, bool, int]:
        fit = variant.fit
        augment, flip = (fit.augment, fit.flip) if split == "train" else ("none", False)
        return preprocess_for(variant.backbone, fit.image_size_px, whole=variant.sees_whole), augment, flip, fit.seed


class _Files(Sequence[Path]):
    """The files of samples, each looked for when it is asked for: that takes longer than to read its stored features.

    Raises AskedWrongly where one is nowhere.
    """

    def __init__(self, version: DataVersion, samples: Sequence[Sample]) -> None:
        self._version, self._samples = version, samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [locate(self._version, sample) for sample in self._samples[index]]
        return locate(self._version, self._samples[index])


def read_labels(job: Job, samples: Sequence[Sample], heads: Sequence[Head]) -> tuple[dict[str, Tensor], dict[str, Masks]]:
    """The samples' labels by target (class numbers, or rows of label sets), and their masks by target."""
    labels, masks = dict[str, Tensor](), dict[str, Masks]()

    def open_mask(cell: str) -> MaskFile:
        known = job.version.masks[cell]
        return MaskFile(locate_mask(job.version, cell), known.pixels, known.as_stored)

    for head in heads:
        cells = [sample.labels[head.target] for sample in samples]
        found = TASKS[head.task].encode(cells, job.classes[head.target], open_mask)
        if isinstance(found, Masks):
            masks[head.target] = found
        else:
            labels[head.target] = found
    return labels, masks
