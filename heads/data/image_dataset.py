"""Images with their labels and masks as a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from heads.data.augmentation import Variation
from heads.data.decoding import decode_mask
from heads.data.feeds import Feed, SampleFeed
from heads.data.image_feed import ImageFeed
from heads.data.image_transforms import Draw, ImagePreprocess, build_draw, resize, resize_mask, vary, vary_mask
from heads.data.inputs import Inputs, of_images
from heads.data.labels import MISSING_LABEL, has_label
from heads.data.masks import Masks
from heads.data.pixels import decode_pixels
from heads.data.prefetch import prefetch
from heads.data.samples import DEFAULT_CACHE_BYTES, Item
from heads.spec import Augment


class ImageDataset(Dataset[Item]):
    """Images and their labels by target: item i is (float image (3, S, S), {target: label}, i). See `heads.data.samples`.

    `digests` (32 hex digits a sample) are needed for views alone. A label is a class number, or a row of 0 and 1 (C) for a set
    of labels; -1 (throughout the row) is missing. Labels of `masks` are class numbers (S, S), geometrically varied as their
    image is. Augmentation depends on (seed, epoch, i) alone, so it repeats exactly whatever the number of workers. Decoded and
    resized images are kept in memory, up to `cache_bytes` over a loader's workers, since every epoch reads them all again.
    An item raises ImageError if one of its files does not decode.
    """

    def __init__(
        self,
        paths: Sequence[Path | bytes],
        labels: Mapping[str, Sequence[int] | Tensor],
        preprocess: ImagePreprocess,
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
        # Before masks are read, only whether a sample has one is known.
        for target, column in self.masks.items():
            self.labels[target] = torch.tensor([MISSING_LABEL if path is None else 0 for path in column.paths])
        for target, rows in self.labels.items():
            if len(rows) != len(self.paths):
                raise ValueError(f"target {target!r} has {len(rows)} labels for {len(self.paths)} images")
        self.preprocess, self.seed, self.cache_bytes = preprocess, seed, cache_bytes
        # Shared memory: loader workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.augment, self.flip = augment, flip
        self._draw, self._draw_plain = build_draw(preprocess, augment, flip), build_draw(preprocess, "none")
        self._resized: dict[int, tuple[Tensor, ...]] = {}
        self._resized_masks: dict[int, tuple[Tensor, ...]] = {}
        self._cached_bytes = 0
        self._seen_masks: dict[tuple[int, int], list[Tensor]] = {}
        self._seen_bytes = 0

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of every image."""
        return self.preprocess.image_size_px, self.preprocess.image_size_px

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose augmentation the next items have."""
        self._epoch.fill_(epoch)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Says that these images are read next, in this order, so that files of other machines are fetched ahead."""
        prefetch(self.paths, [index for index in indices if index not in self._resized])

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        """How often each class occurs (C, up to the last that does; for masks in pixels), and how many samples are labelled."""
        labels = self.labels[target]
        labelled = labels[has_label(labels)]
        if target in self.masks:
            return torch.tensor(self.masks[target].num_pixels, dtype=torch.float64), len(labelled)
        return (labelled.sum(dim=0) if labels.ndim == 2 else labelled.bincount()), len(labelled)

    def __getitem__(self, index: int) -> Item:
        resized, *resized_masks = self._read(index)
        variation = self.variation(index, *resized.shape[-2:])
        image = vary(resized, variation, self.preprocess)
        masks = [vary_mask(mask, variation, self.preprocess) for mask in resized_masks]
        return image, self._labels(index, masks), index

    def view(self, index: int, number: int) -> Tensor:
        """The image (3, S, S) in the view of this number: 0 as evaluation sees it, the others varied.

        A view depends on digest and number alone, so it is the same in every data set that holds the image.
        """
        resized = self._read(index)[0]
        return vary(resized, self.variation_in_view(index, number, *resized.shape[-2:]), self.preprocess)

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        """The labels of these images by target, masks (S, S) varied as the view varies their image, which is not read for this.

        Masks are kept in memory, up to `cache_bytes`; the preprocessing has to be `whole`.
        """
        labels = {target: column[indices] for target, column in self.labels.items()}
        if not self.masks:
            return labels
        masks = zip(*(self._masks_in_view(index, number) for index in indices.tolist()), strict=True)
        return labels | {target: torch.stack(rows).long() for target, rows in zip(self.masks, masks, strict=True)}

    def labels_of(self, index: int, variation: Variation, height: int, width: int) -> dict[str, Tensor]:
        """An image's labels by target, masks varied as the image is, which is resized to this height and width but not read."""
        masks = self._kept(self._resized_masks, index, lambda: self._read_masks(index, height, width))
        return self._labels(index, [vary_mask(mask, variation, self.preprocess) for mask in masks])

    def _labels(self, index: int, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        labels = {target: column[index] for target, column in self.labels.items()}
        return labels | dict(zip(self.masks, masks, strict=True))

    def length(self, index: int) -> int:
        """0: all images cost the same."""
        return 0

    def words(self, indices: Sequence[int]) -> None:
        """None: images hold no words."""

    def feed(self, device: torch.device) -> Feed:
        """What brings the images to a device: on a GPU they are prepared there, elsewhere one at a time as they are read."""
        return ImageFeed(self, device) if device.type == "cuda" else SampleFeed(self)

    def collate(self, samples: Sequence[Tensor]) -> Inputs:
        """The images as one batch (N, 3, S, S)."""
        return of_images(default_collate(list(samples)))

    def _masks_in_view(self, index: int, number: int) -> list[Tensor]:
        if (index, number) in self._seen_masks:
            return self._seen_masks[index, number]
        assert self.preprocess.whole
        side = self.preprocess.image_size_px
        variation = self.variation_in_view(index, number, side, side)
        read = self._read_masks(index, side, side)
        masks = [vary_mask(mask, variation, self.preprocess).to(torch.int16) for mask in read]
        num_bytes = sum(mask.nbytes for mask in masks)
        if self._seen_bytes + num_bytes <= self.cache_bytes:
            self._seen_masks[index, number] = masks
            self._seen_bytes += num_bytes
        return masks

    def variation(self, index: int, height: int, width: int) -> Variation:
        """How the image, resized to this height and width, is varied in the epoch that is set."""
        return self._draw(height, width, np.random.default_rng((self.seed, int(self._epoch), index)))

    def variation_in_view(self, index: int, number: int, height: int, width: int) -> Variation:
        """How the image, resized to this height and width, is varied in the view of this number."""
        draw, seed = self.draw_of_view(index, number)
        return draw(height, width, np.random.default_rng(seed))

    def draw_of_view(self, index: int, number: int) -> tuple[Draw, tuple[int, ...]]:
        """The function that draws how an image is varied in a view, and the seed of its random numbers."""
        return (self._draw, (int(self.digests[index], 16), number)) if number else (self._draw_plain, (0,))

    def _read(self, index: int) -> tuple[Tensor, ...]:
        """The resized image (1, 3, H, W) in uint8, then the class numbers (1, 1, H, W) of each mask in int16."""

        def read() -> tuple[Tensor, ...]:
            image = resize(decode_pixels(self.paths[index]), self.preprocess).to(torch.uint8)
            return (image, *self._read_masks(index, *image.shape[-2:]))

        return self._kept(self._resized, index, read)

    def _kept(
        self, cache: dict[int, tuple[Tensor, ...]], index: int, read: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What the cache holds of an image, or what is read now, and kept if there is room."""
        if index in cache:
            return cache[index]
        tensors, worker = read(), get_worker_info()
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        # Filled up and then left: an epoch reads each image once, in a new order, so none is better to drop than another.
        if self._cached_bytes + num_bytes <= self.cache_bytes // (worker.num_workers if worker else 1):
            cache[index] = tensors
            self._cached_bytes += num_bytes
        return tensors

    def _read_masks(self, index: int, height: int, width: int) -> tuple[Tensor, ...]:
        return tuple(self._read_mask(column, index, height, width) for column in self.masks.values())

    def _read_mask(self, column: Masks, index: int, height: int, width: int) -> Tensor:
        path = column.source(index)
        if path is None:
            return torch.full((1, 1, height, width), MISSING_LABEL, dtype=torch.int16)
        values = decode_mask(path, self.paths[index], as_stored=bool(column.as_stored) and column.as_stored[index])
        numbers = np.full(int(values.max()) + 1, MISSING_LABEL, dtype=np.int16)
        for value, number in column.numbers.items():
            numbers[value : value + 1] = number
        return resize_mask(torch.from_numpy(numbers[values])[None, None], self.preprocess)
