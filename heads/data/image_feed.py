"""Images on their way to a GPU: decoded in loader processes, prepared there in batches, and kept there for later epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from heads.data.augmentation import Variation
from heads.data.device_images import BatchPlan, num_spare_bytes, plan_batch, prepare_images, prepare_planned
from heads.data.image_preprocess import ImagePreprocess, resized_size
from heads.data.image_transforms import Draw, build_draw, prepare_pixels, resize
from heads.data.inputs import Inputs, of_images
from heads.data.pixels import decode_pixels
from heads.data.slabs import empty_bytes, in_slab, pinned

if TYPE_CHECKING:
    from heads.data.image_dataset import ImageDataset

# The share of a GPU's memory in which a data set's decoded images are kept. A picture of 256 px takes 0.2 MB: 80,000 in 16 GB.
KEPT_SHARE = 0.2
# Larger images are resized where they are read: thousands that wait for the device, two batches a process, would fill memory.
MAX_PIXELS = 400_000


def prepare_plain(pixels: Sequence[Tensor], preprocess: ImagePreprocess, device: torch.device) -> Tensor:
    """Images in uint8, each (1, 3, H, W), as evaluation sees them: network inputs (N, 3, S, S) on the device."""
    if device.type != "cuda":
        return torch.stack([prepare_pixels(image, preprocess) for image in pixels]).to(device)
    draw, random = build_draw(preprocess, "none"), np.random.default_rng(0)
    handed = [hand_over(image, preprocess) for image in pixels]
    sizes = [(image.shape[-2], image.shape[-1]) for image in handed]
    plain = [draw(*resized_size(*size, preprocess), random) for size in sizes]
    return prepare_images(_joined(handed).to(device), sizes, plain, preprocess)


def _joined(pixels: Sequence[Tensor]) -> Tensor:
    """Images (1, 3, H, W) as one row of bytes, (H, W, 3) each."""
    return torch.cat([image.permute(0, 2, 3, 1).flatten() for image in pixels])


def hand_over(pixels: Tensor, preprocess: ImagePreprocess) -> Tensor:
    """An image (1, 3, H, W) in uint8 as a device is handed it: a large one resized, which resizing again leaves as it is."""
    return pixels if pixels[0, 0].numel() <= MAX_PIXELS else resize(pixels, preprocess).to(torch.uint8)


# In place of a number: of a view, which is read once, and may be of another data set than the feed's.
NOT_KEPT = -1


class Picture(NamedTuple):
    """What is read of an image: its pixels (1, 3, H, W) in uint8, or None if the device has them; its size; its variation."""

    pixels: Tensor | None
    size: tuple[int, int]
    variation: Variation
    labels: dict[str, Tensor]
    number: int


class Pictures(NamedTuple):
    """A batch of them: the pixels that the device lacks one image after another, (H, W, 3) each, in one row of bytes.

    After them are as many bytes as `heads.data.device_images` needs. By image: whether its pixels are there (N), its height and
    width (N, 2), and its number (N).
    """

    content: Tensor
    plan: BatchPlan
    is_read: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    labels: dict[str, Tensor]
    numbers: NDArray[np.int64]

    def pin_memory(self) -> Pictures:
        """The same with its tensors in pinned memory: a loader would else look for tensors in every number."""
        plan = self.plan._replace(numbers=pinned(self.plan.numbers))
        labels = {target: column.pin_memory() for target, column in self.labels.items()}
        return self._replace(content=pinned(self.content), plan=plan, labels=labels)


def _collate(preprocess: ImagePreprocess, items: Sequence[Picture]) -> Pictures:
    pixels, sizes, variations, labels, numbers = map(list, zip(*items, strict=True))
    read = [image.permute(0, 2, 3, 1).flatten() for image in pixels if image is not None]
    spare = torch.zeros(num_spare_bytes(sizes), dtype=torch.uint8)
    rows = [*read, spare]
    content = torch.cat(rows, out=empty_bytes(sum(map(len, rows))))
    is_read = np.array([image is not None for image in pixels])
    planned = plan_batch(sizes, variations, preprocess)
    planned = planned._replace(numbers=in_slab(planned.numbers))
    return Pictures(content, planned, is_read, np.array(sizes), default_collate(labels), np.array(numbers))


def _read_view(path: Path | bytes, draw: Draw, seed: tuple[int, ...], preprocess: ImagePreprocess) -> Picture:
    pixels = hand_over(decode_pixels(path), preprocess)
    size = pixels.shape[-2], pixels.shape[-1]
    return Picture(pixels, size, draw(*resized_size(*size, preprocess), np.random.default_rng(seed)), {}, NOT_KEPT)


class ImageFeed:
    """The images of a data set, decoded on the CPU and prepared on a device: see `heads.data.device_images`.

    The first images that were decoded are kept on the device, as many as fit into `kept_bytes`, so that later epochs read no
    file for them.
    """

    is_costly = True

    def __init__(self, images: ImageDataset, device: torch.device, kept_bytes: int | None = None) -> None:
        self._images, self._device = images, device
        self._room = int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory) if kept_bytes is None else kept_bytes
        self._kept: dict[int, Tensor] = {}
        # The height and width of each image that is kept. Shared memory: loader processes then leave it to the device.
        self._sizes = torch.zeros(len(images), 2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(3, S, S)."""
        side = self._images.preprocess.image_size_px
        return 3, side, side

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Picture:
        pixels, size, resized = self._read(index)
        variation = self._images.variation(index, *resized)
        return Picture(pixels, size, variation, self._images.labels_of(index, variation, *resized), index)

    def length(self, index: int) -> int:
        """0: all images cost the same."""
        return 0

    def reader(self, index: int, number: int) -> Callable[[], Picture]:
        """A function that reads an image in a view."""
        images = self._images
        return partial(_read_view, images.paths[index], *images.draw_of_view(index, number), images.preprocess)

    @property
    def collate(self) -> Callable[[Sequence[Picture]], Pictures]:
        """The function that joins images to one batch."""
        return partial(_collate, self._images.preprocess)

    def finish(self, batch: Pictures) -> tuple[Inputs, dict[str, Tensor]]:
        """The images as inputs (N, 3, S, S) on the device, and the labels of them."""
        content, preprocess = batch.content.to(self._device, non_blocking=True), self._images.preprocess
        if not batch.is_read.all() or (len(content) <= self._room and NOT_KEPT not in batch.numbers):
            content = self._keep(batch, content)
        return of_images(prepare_planned(content, batch.plan, preprocess)), batch.labels

    def _keep(self, batch: Pictures, content: Tensor) -> Tensor:
        """All of a batch's images as one row of bytes: those that were read, and those that were kept; keeps more if it can."""
        keeps, place, rows = len(content) <= self._room, 0, []
        each = zip(batch.numbers.tolist(), batch.is_read.tolist(), batch.sizes.tolist(), strict=True)
        for number, is_read, (height, width) in each:
            rows.append(content[place : place + 3 * height * width] if is_read else self._kept[number])
            place += len(rows[-1]) if is_read else 0
            if keeps and is_read:
                self._kept[number] = rows[-1]
                self._sizes[number] = torch.tensor((height, width))
        self._room -= len(content) if keeps else 0
        return torch.cat([*rows, content[place:]])

    def _read(self, index: int) -> tuple[Tensor | None, tuple[int, int], tuple[int, int]]:
        """An image's pixels, if the device lacks them, its height and width, and those that it is resized to."""
        height, width = self._sizes[index].tolist()
        pixels = None if height else hand_over(decode_pixels(self._images.paths[index]), self._images.preprocess)
        if pixels is not None:
            height, width = pixels.shape[-2:]
        return pixels, (height, width), resized_size(height, width, self._images.preprocess)
