"""Images prepared in batches on a device: the same preprocessing and augmentation as one at a time on a CPU.

Resized pixels are rounded there and here. On a device sums are added up in another order, so that at most one value in ten
thousand is rounded to the other side, and differs by 1 of 255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.data.augmentation import Variation, erase, recolour, turn
from heads.data.preprocess import ImagePreprocess, frame_of, normalise
from heads.data.resampling import Span, max_taps, resize_sides, resize_sides_whole, weight_matrices, whole_matrices

# Images are laid side by side in float, filled up to the largest: so many bytes at once.
MAX_PADDED_BYTES = 512 * 2**20

Size = tuple[int, int]


def prepare_images(
    content: Tensor, sizes: Sequence[Size], variations: Sequence[Variation], preprocess: ImagePreprocess
) -> Tensor:
    """Decoded images as network inputs (N, 3, S, S), on the device where they lie.

    `content` is one row of bytes, image after image, each (H, W, 3) of its own of the `sizes`. They are varied as `variations`
    say, each as drawn for the size that its image is resized to.
    """
    # As many bytes more as the widest image's rows have: beyond the last image something has to be read.
    content = F.pad(content, (0, 3 * max(width for _, width in sizes)))
    starts = [0, *accumulate(3 * height * width for height, width in sizes)]
    groups = list(_groups(sizes, [variation.colour is not None for variation in variations]))
    prepared = []
    for group in groups:
        own = [variations[number] for number in group]
        frames = _Frames(content, [starts[number] for number in group], [sizes[number] for number in group], preprocess)
        prepared.append(normalise(frames.cut(own) if own[0].colour is None else frames.vary(own), preprocess))
    if len(groups) == 1:
        return prepared[0]
    places = torch.tensor(list(chain.from_iterable(groups))).argsort()
    return torch.cat(prepared).index_select(0, places.to(content.device, non_blocking=True))


def _groups(sizes: Sequence[Size], varied: Sequence[bool]) -> Iterator[list[int]]:
    """The numbers of images, varied or not, in groups that fit into memory; in order, if one group holds all.

    As few as possible: starting the work on a group takes a GPU's host longer than the GPU needs for it.
    """
    for kind in sorted(set(varied)):
        alike = [number for number in range(len(sizes)) if varied[number] == kind]
        if _padded_bytes([sizes[number] for number in alike]) <= MAX_PADDED_BYTES:
            yield alike
            continue
        group: list[int] = []
        for number in sorted(alike, key=lambda number: sizes[number]):
            if group and _padded_bytes([sizes[each] for each in (*group, number)]) > MAX_PADDED_BYTES:
                yield group
                group = []
            group.append(number)
        yield group


def _padded_bytes(sizes: Sequence[Size]) -> int:
    return 12 * len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)


class _Frames:
    """Images that are resized together. Sizes are computed on the CPU, so that the device is never waited for."""

    def __init__(self, content: Tensor, starts: Sequence[int], sizes: Sequence[Size], preprocess: ImagePreprocess) -> None:
        self._content, self._starts, self._preprocess = content, torch.tensor(starts), preprocess
        rows = [(size, *frame_of(*size, preprocess)) for size in sizes]
        # Heights and widths (N, 2): of the images, of what is kept of them, and what that is resized to.
        self.sizes, self.kept, self.resized = torch.tensor(rows).unbind(dim=1)

    def cut(self, variations: Sequence[Variation]) -> Tensor:
        """The middle squares (N, 3, S, S) of the resized images as whole numbers of 0 to 255, mirrored or not."""
        side = self._preprocess.image_size_px
        return self._resize((side, side), (self.resized - side) // 2, _mirrored(variations))

    def vary(self, variations: Sequence[Variation]) -> Tensor:
        """The windows (N, 3, S, S) of the resized images, in float from 0 to 255, varied."""
        height, width = self.resized.amax(dim=0).tolist()
        images = self._resize((height, width), torch.zeros_like(self.resized), torch.zeros(len(variations), dtype=torch.int64))
        for number, degrees in ((number, v.geometry.degrees) for number, v in enumerate(variations) if v.geometry.degrees):
            h, w = self.resized[number].tolist()
            images[number, :, :h, :w] = turn(images[number, None, :, :h, :w].to(torch.uint8), degrees, "bilinear")[0]
        windows = self._cut_windows(images, variations)
        seen = recolour(windows, self._on_device(torch.tensor([variation.colour for variation in variations])))
        for number, erased in ((number, v.erased) for number, v in enumerate(variations) if v.erased):
            erase(seen[number], erased)
        return seen

    def _cut_windows(self, images: Tensor, variations: Sequence[Variation]) -> Tensor:
        """The windows (N, 3, S, S) of resized images (N, 3, H, W), as whole numbers of 0 to 255."""
        side = self._preprocess.image_size_px
        geometries = [variation.geometry for variation in variations]
        start, length = torch.tensor([((g.top, g.left), (g.num_rows, g.num_columns)) for g in geometries]).unbind(dim=1)
        taps = max_taps(length.max().item() / side)
        whole = torch.full_like(length, side)
        span = self._span(start, length, whole, torch.zeros_like(length), self.resized, _mirrored(variations))
        height, width = images.shape[-2:]
        return resize_sides_whole(images, *whole_matrices(span, (side, side), (height, width), taps))

    def _resize(self, wanted: Size, first: Tensor, mirrored: Tensor) -> Tensor:
        """So many rows and columns of the resized images from `first` (N, 2) on, as whole numbers of 0 to 255."""
        interpolation = self._preprocess.interpolation
        padded, taps = self._padded(), max_taps((self.kept / self.resized).max().item(), interpolation)
        span = self._span((self.sizes - self.kept) // 2, self.kept, self.resized, first, self.sizes, mirrored)
        height, width = padded.shape[-2:]
        resized = resize_sides(padded, weight_matrices(span, wanted, (height, width), taps, interpolation))
        return (resized.clamp_(0, 255) if interpolation == "bicubic" else resized).round_()

    def _span(self, start: Tensor, length: Tensor, resized: Tensor, first: Tensor, limit: Tensor, mirrored: Tensor) -> Span:
        """The spans of heights and widths, on the device; only widths are mirrored."""
        mirrors = torch.stack([torch.zeros_like(mirrored), mirrored], dim=1)
        return Span(*self._on_device(torch.stack([start, length, resized, first, limit, mirrors])))

    def _padded(self) -> Tensor:
        """The images side by side (N, 3, H, W) in float; beyond a smaller one are bytes of others, which no weight counts."""
        height, width = self.sizes.amax(dim=0).tolist()
        starts, widths = self._on_device(torch.stack([self._starts, 3 * self.sizes[:, 1]]))[..., None]
        rows = (starts + widths * torch.arange(height, device=starts.device)).clamp_(max=len(self._content) - 3 * width)
        within = 3 * torch.arange(width, device=starts.device) + torch.arange(3, device=starts.device)[:, None]
        places = rows[:, None, :, None] + within[:, None, :]
        return self._content.take(places).float()

    def _on_device(self, numbers: Tensor) -> Tensor:
        return numbers.to(self._content.device, non_blocking=True)


def _mirrored(variations: Sequence[Variation]) -> Tensor:
    return torch.tensor([int(variation.geometry.mirrored) for variation in variations])
