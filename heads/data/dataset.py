"""Images with their labels and masks as a torch Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from heads.data.decoding import decode, decode_mask
from heads.data.images import Preprocess, build_transform, pixels_of, resize, resize_mask
from heads.data.labels import MISSING_LABEL, has_label
from heads.data.masks import Masks
from heads.spec import Augment

DEFAULT_CACHE_BYTES = 256 * 2**20

Item = tuple[Tensor, dict[str, Tensor], int]


class ImageDataset(Dataset[Item]):
    """Images and their labels by target: item i is (float image (3, S, S), {target: label}, i).

    `digests` (32 hex digits a sample) are asked for by `view` alone. Labels are a class number a sample, or a row of 0 and 1
    (C) for sets of labels; -1 (all of a row) is missing. Those of `masks` are class numbers (S, S), geometrically varied as
    their image is. Augmentation depends on (seed, epoch, i) alone, so it repeats exactly whatever the number of workers.
    Decoded and resized pictures are kept in memory, up to `cache_bytes` over a loader's workers, since every epoch reads
    them all again. An item raises ImageError where one of its files does not decode.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Mapping[str, Sequence[int] | Tensor],
        preprocess: Preprocess,
        augment: Augment = "none",
        seed: int = 0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        flip: bool = False,
        masks: Mapping[str, Masks] | None = None,
        digests: Sequence[str] = (),
    ) -> None:
        self.paths, self.digests = paths, tuple(digests)
        self.masks = dict(masks or {})
        self.labels = {target: torch.as_tensor(column, dtype=torch.int64) for target, column in labels.items()}
        # Of a mask only whether there is one is known before it is read.
        for target, column in self.masks.items():
            self.labels[target] = torch.tensor([MISSING_LABEL if path is None else 0 for path in column.paths])
        for target, found in self.labels.items():
            if len(found) != len(self.paths):
                raise ValueError(f"target {target!r} has {len(found)} labels for {len(self.paths)} images")
        self.preprocess, self.seed, self.cache_bytes = preprocess, seed, cache_bytes
        # Shared memory: loader workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.augment, self.flip = augment, flip
        self._transform, self._plain = build_transform(preprocess, augment, flip), build_transform(preprocess, "none")
        self._resized: dict[int, tuple[Tensor, ...]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose augmentation the next items have."""
        self._epoch.fill_(epoch)

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        """How often each class occurs (C; of masks in pixels, of classes up to the last that occurs), in how many samples."""
        labels = self.labels[target]
        labelled = labels[has_label(labels)]
        if target in self.masks:
            return torch.tensor(self.masks[target].num_pixels, dtype=torch.float64), len(labelled)
        return (labelled.sum(dim=0) if labels.ndim == 2 else labelled.bincount()), len(labelled)

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng((self.seed, int(self._epoch), index))
        resized, *resized_masks = self._read(index)
        image, masks = self._transform(resized, resized_masks, random)
        labels = {target: column[index] for target, column in self.labels.items()}
        return image, labels | dict(zip(self.masks, masks, strict=True)), index

    def view(self, index: int, number: int) -> tuple[Tensor, list[Tensor]]:
        """The image (3, S, S) and its masks (S, S) in one of the sample's views: 0 as evaluation sees it, the others varied.

        A view depends on digest and number alone, so that it is the same in every data set that holds the sample.
        """
        resized, *masks = self._read(index)
        return self._show(index, number, resized, masks)

    def mask_view(self, index: int, number: int) -> list[Tensor]:
        """The masks of `view`, without reading the image; they have to be `whole`."""
        assert self.preprocess.whole
        side = self.preprocess.image_size_px
        blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        return self._show(index, number, blank, [self._read_mask(each, index, blank) for each in self.masks.values()])[1]

    def _show(self, index: int, number: int, resized: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if number == 0:
            return self._plain(resized, masks, np.random.default_rng(0))
        return self._transform(resized, masks, np.random.default_rng((int(self.digests[index], 16), number)))

    def _read(self, index: int) -> tuple[Tensor, ...]:
        """The resized image (1, 3, H, W) in uint8, then the class numbers (1, 1, H, W) of each mask in int16."""
        if index in self._resized:
            return self._resized[index]
        image = resize(pixels_of(decode(self.paths[index])), self.preprocess).to(torch.uint8)
        masks = [self._read_mask(column, index, image) for column in self.masks.values()]
        num_bytes = sum(tensor.nbytes for tensor in (image, *masks))
        worker = get_worker_info()
        # Filled up and then left: an epoch reads each picture once, in a new order, so there is no telling which to drop.
        if self._cached_bytes + num_bytes <= self.cache_bytes // (worker.num_workers if worker else 1):
            self._resized[index] = (image, *masks)
            self._cached_bytes += num_bytes
        return (image, *masks)

    def _read_mask(self, column: Masks, index: int, image: Tensor) -> Tensor:
        path = column.paths[index]
        if path is None:
            return torch.full((1, 1, *image.shape[-2:]), MISSING_LABEL, dtype=torch.int16)
        values = decode_mask(path, self.paths[index], as_stored=bool(column.as_stored) and column.as_stored[index])
        numbers = np.full(int(values.max()) + 1, MISSING_LABEL, dtype=np.int16)
        for value, number in column.numbers.items():
            numbers[value : value + 1] = number
        return resize_mask(torch.from_numpy(numbers[values])[None, None], self.preprocess)
