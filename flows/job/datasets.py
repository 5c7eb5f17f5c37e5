"""The splits of a job's data version as data sets of `heads`: files, label numbers, masks, tags."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import overload

from torch import Tensor

from flows.job.job import SPLITS_OF, Job
from flows.records import DataVersion, Sample
from flows.sample_files import files_of, locate, locate_mask, prefetch
from heads.data.masks import MaskFile, Masks
from heads.data.modalities import preparation_of, preprocess_of
from heads.data.samples import DEFAULT_CACHE_BYTES, Samples
from heads.data.tags import Tags
from heads.data.wordpiece import Vocabulary
from heads.spec import Head, Variant
from heads.tasks.table import TASKS


class Splits:
    """The splits of a job's data version as data sets; works that see a split the same way share one, and its cache.

    All methods raise ValueError on a split that a job of this kind never reads, such as `test` in a training.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._vocabularies: dict[Hashable, Vocabulary | None] = {}
        self._open: dict[str, tuple[Hashable, Samples]] = {}
        self._samples: dict[str, list[Sample]] = {split: [] for split in SPLITS_OF[job.kind]}
        for sample in job.version.samples:
            self._samples[sample.split].append(sample)

    def open(self, split: str, variant: Variant, weights: Path | None = None) -> Samples:
        """The split as the variant sees it; of each split, only the data set last asked for stays open."""
        preparation, heads = (
            preparation_of(variant.backbone),
            tuple((head.target, head.task, head.ignore) for head in variant.heads),
        )
        view = preparation.varied_view(variant.fit) if split == "train" else preparation.PLAIN_VIEW
        key = preprocess_of(variant), view, variant.fit.seed, heads, self._vocabulary_key(variant, weights)
        if split not in self._open or self._open[split][0] != key:
            self._open.pop(split, None)
            self._open[split] = key, self.read(split, variant, weights)
        return self._open[split][1]

    def read(self, split: str, variant: Variant, weights: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Samples:
        """A new data set of the split for one variant, which keeps at most `cache_bytes` of samples in memory."""
        samples = self._of(split)
        labels, masks, tags = read_labels(self.job, samples, variant.heads)
        files, digests = _Files(self.job.version, samples, split), self.digests(split)
        preparation, varied = preparation_of(variant.backbone), split == "train"
        return preparation.open_samples(
            variant,
            files,
            labels,
            masks,
            digests,
            varied=varied,
            cache_bytes=cache_bytes,
            vocabulary=self.vocabulary(variant, weights),
            tags=tags,
        )

    def vocabulary(self, variant: Variant, weights: Path | None) -> Vocabulary | None:
        """The words that a variant of texts tells apart: those of its weights' folder, or of the training texts alone."""
        key = self._vocabulary_key(variant, weights)
        if key not in self._vocabularies:
            train = _Files(self.job.version, self._of("train"), "train")
            self._vocabularies[key] = preparation_of(variant.backbone).vocabulary_of(variant, weights, train)
        return self._vocabularies[key]

    def _vocabulary_key(self, variant: Variant, weights: Path | None) -> Hashable:
        """What decides a variant's vocabulary."""
        return variant.modality, weights, preprocess_of(variant).to_json().get("lowercase")

    def labelled(self, split: str, heads: Sequence[Head]) -> tuple[Sequence[Path | bytes], dict[str, Tensor]]:
        """The split's files, and the labels of these heads by target."""
        samples = self._of(split)
        return _Files(self.job.version, samples, split), read_labels(self.job, samples, heads)[0]

    def tagged(self, split: str, head: Head) -> tuple[Sequence[Path | bytes], Tags]:
        """The split's files, and the tags of a head of tags."""
        samples = self._of(split)
        return _Files(self.job.version, samples, split), read_labels(self.job, samples, (head,))[2][head.target]

    def digests(self, split: str) -> list[str]:
        """The keys of the split's samples in the feature store, in order (`Sample.pixel_digest`)."""
        return [sample.pixel_digest for sample in self._of(split)]

    def _of(self, split: str) -> list[Sample]:
        if split not in self._samples:
            raise ValueError(
                f"a job of the kind {self.job.kind} asked for the split {split!r}; allowed: {', '.join(self._samples)}. "
                "The holdout is for scoring alone"
            )
        return self._samples[split]


class _Files(Sequence[Path | bytes]):
    """The files of samples, or their bytes, located one by one on access: that takes longer than reading stored features.

    Access raises AskedWrongly if the file is nowhere.
    """

    def __init__(self, version: DataVersion, samples: Sequence[Sample], split: str) -> None:
        self._version, self._samples, self._split = version, samples, split

    def __len__(self) -> int:
        return len(self._samples)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the files of these samples ahead, with their masks, if they are on another machine."""
        samples = [self._samples[index] for index in indices]
        prefetch(self._version, files_of(self._version, samples), self._split)

    @overload
    def __getitem__(self, index: int) -> Path | bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path | bytes]: ...

    def __getitem__(self, index: int | slice) -> Path | bytes | list[Path | bytes]:
        if isinstance(index, slice):
            return [locate(self._version, sample) for sample in self._samples[index]]
        return locate(self._version, self._samples[index])


def read_labels(
    job: Job, samples: Sequence[Sample], heads: Sequence[Head]
) -> tuple[dict[str, Tensor], dict[str, Masks], dict[str, Tags]]:
    """The samples' labels by target (class numbers, or a row of zeros and ones a label set), their masks and their tags."""
    labels, masks, tags = dict[str, Tensor](), dict[str, Masks](), dict[str, Tags]()

    def open_mask(cell: str) -> MaskFile:
        known = job.version.masks[cell]
        return MaskFile(partial(locate_mask, job.version, cell), known.pixels, known.as_stored)

    for head in heads:
        cells = [sample.labels[head.target] for sample in samples]
        encoded = TASKS[head.task].encode(cells, job.classes[head.target], open_mask)
        if isinstance(encoded, Masks):
            masks[head.target] = encoded
        elif isinstance(encoded, Tags):
            tags[head.target] = encoded
        else:
            labels[head.target] = encoded
    return labels, masks, tags
