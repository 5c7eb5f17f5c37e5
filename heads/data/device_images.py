"""Images prepared in batches on a device: the same preprocessing and augmentation as one at a time on a CPU.

Resized pixels are rounded there and here. On a device sums are added up in another order, so that at most one value in ten
thousand is rounded to the other side, and differs by 1 of 255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from heads.data.augmentation import Variation, erase, recolour, turn
from heads.data.preprocess import ImagePreprocess, frame_of, normalise
from heads.data.resampling import Span, max_taps, resize_sides, resize_sides_whole, weight_matrices, whole_matrices

# Images are laid side by side in float, filled up to the largest: so many bytes at once.
MAX_PADDED_BYTES = 512 * 2**20


def prepare_images(pixels: Sequence[Tensor], variations: Sequence[Variation], preprocess: ImagePreprocess) -> Tensor:
    """Images in uint8, each (1, 3, H, W) of its own size, as network inputs (N, 3, S, S) on the device where they lie.

    They are varied as `variations` say, an image's as drawn for the size that it is resized to.
    """
    side = preprocess.image_size_px
    made = torch.empty(len(pixels), 3, side, side, device=pixels[0].device)
    for group in _groups(pixels, [variation.colour is not None for variation in variations]):
        own = [variations[number] for number in group]
        frames = _Frames([pixels[number] for number in group], preprocess)
        window = frames.cut(own) if own[0].colour is None else frames.vary(own)
        made[torch.tensor(group).to(made.device, non_blocking=True)] = normalise(window, preprocess)
    return made


def _groups(pixels: Sequence[Tensor], varied: Sequence[bool]) -> Iterator[list[int]]:
    """The numbers of images of about the same size that are varied, or are not, in groups that fit into memory."""
    order = sorted(range(len(pixels)), key=lambda number: (varied[number], pixels[number].shape[-2:].numel()))
    group: list[int] = []
    height = width = 0
    for number in order:
        height, width = max(height, pixels[number].shape[-2]), max(width, pixels[number].shape[-1])
        too_many = 12 * height * width * (len(group) + 1) > MAX_PADDED_BYTES
        if group and (too_many or varied[number] != varied[group[0]]):
            yield group
            group, (height, width) = [], pixels[number].shape[-2:]
        group.append(number)
    yield group


class _Frames:
    """Images that are resized together. Numbers on the CPU say sizes, so that the device is never waited for."""

    def __init__(self, pixels: Sequence[Tensor], preprocess: ImagePreprocess) -> None:
        self._pixels, self._preprocess = pixels, preprocess
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        rows = [(size, *frame_of(*size, preprocess)) for size in sizes]
        # The columns of (N, 2), a side each: how long it is, what is kept of it, and what that is resized to.
        self.sizes, self.kept, self.resized = torch.tensor(rows).unbind(dim=1)
        self.device = pixels[0].device

    def cut(self, variations: Sequence[Variation]) -> Tensor:
        """The middle squares (N, 3, S, S) of the resized images as whole numbers of 0 to 255, mirrored or not."""
        side, mirrored = self._preprocess.image_size_px, torch.tensor([int(v.geometry.mirrored) for v in variations])
        return self._resize((side, side), (self.resized - side) // 2, mirrored)

    def vary(self, variations: Sequence[Variation]) -> Tensor:
        """The windows (N, 3, S, S) of the resized images, in float from 0 to 255, varied."""
        height, width = self.resized.amax(dim=0).tolist()
        images = self._resize((height, width), torch.zeros_like(self.resized), torch.zeros(len(variations), dtype=torch.int64))
        for image, variation, (h, w) in zip(images, variations, self.resized.tolist(), strict=True):
            if variation.geometry.degrees:
                turned = turn(image[None, :, :h, :w].to(torch.uint8), variation.geometry.degrees, "bilinear")
                image[:, :h, :w] = turned[0]
        geometries = [variation.geometry for variation in variations]
        windows = torch.tensor([((g.top, g.left), (g.num_rows, g.num_columns)) for g in geometries])
        start, length = windows.unbind(dim=1)
        side, shrinking = self._preprocess.image_size_px, length.max().item() / self._preprocess.image_size_px
        mirrored = torch.tensor([int(geometry.mirrored) for geometry in geometries])
        rows, columns = (
            whole_matrices(span, side, given, max_taps(shrinking))
            for span, given in zip(
                self._spans(start, length, torch.full_like(length, side), torch.zeros_like(length), self.resized, mirrored),
                (height, width),
                strict=True,
            )
        )
        seen = resize_sides_whole(images, rows, columns)
        colours = torch.tensor([variation.colour for variation in variations])
        seen = recolour(seen, self._on_device(colours))
        for image, variation in zip(seen, variations, strict=True):
            if variation.erased:
                erase(image, variation.erased)
        return seen

    def _resize(self, wanted: tuple[int, int], first: Tensor, mirrored: Tensor) -> Tensor:
        """So many rows and columns of the resized images from `first` (N, 2) on, as whole numbers of 0 to 255."""
        interpolation = self._preprocess.interpolation
        padded, taps = self._padded(), max_taps((self.kept / self.resized).max().item(), interpolation)
        spans = self._spans((self.sizes - self.kept) // 2, self.kept, self.resized, first, self.sizes, mirrored)
        given = padded.shape[-2:]
        rows, columns = (
            weight_matrices(span, number, length, taps, interpolation)
            for span, number, length in zip(spans, wanted, given, strict=True)
        )
        resized = resize_sides(padded, rows, columns)
        return (resized.clamp_(0, 255) if interpolation == "bicubic" else resized).round_()

    def _spans(
        self, start: Tensor, length: Tensor, resized: Tensor, first: Tensor, limit: Tensor, mirrored: Tensor
    ) -> list[Span]:
        """The spans of heights and of widths, on the device; only columns are mirrored."""
        mirrors = torch.stack([torch.zeros_like(mirrored), mirrored], dim=1)
        fields = self._on_device(torch.stack([start, length, resized, first, limit, mirrors]))
        return [Span(*fields[..., side]) for side in (0, 1)]

    def _padded(self) -> Tensor:
        """The images side by side (N, 3, H, W) in float, black where they are smaller than the largest."""
        height, width = self.sizes.amax(dim=0).tolist()
        padded = torch.zeros(len(self._pixels), 3, height, width, device=self.device)
        for number, image in enumerate(self._pixels):
            padded[number, :, : image.shape[-2], : image.shape[-1]] = image[0]
        return padded

    def _on_device(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.device, non_blocking=True)
