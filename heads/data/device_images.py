"""Images prepared in batches on a device: the same preprocessing and augmentation as one at a time on a CPU.

Resized pixels are rounded there and here. On a device sums are added up in another order, so that at most one value in ten
thousand is rounded to the other side, and differs by 1 of 255.

All numbers that a device needs are computed where images are read, and packed into one tensor (`plan_batch`): the process that
trains then makes two copies and a few dozen calls a batch, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from heads.data.augmentation import Erased, Variation, erase, recolour, turn
from heads.data.image_preprocess import ImagePreprocess, frame_of, normalise_in_place
from heads.data.resampling import Span, max_taps, resize_sides, resize_sides_whole, weight_matrices, whole_matrices

# Images are laid side by side in float, filled up to the largest: so many bytes at once.
MAX_PADDED_BYTES = 512 * 2**20

Size = tuple[int, int]
Numbers = NDArray[np.int64]


class Group(NamedTuple):
    """Images of a batch that are prepared together: how many, the largest height and width, and how far filters reach.

    Plain ones are resized to their middle squares alone, `wanted`. The others are resized to at most `wanted`, turned by degrees
    (each with its number, and the height and width that it is resized to), cut to windows, recoloured, and covered with noise.
    """

    num_images: int
    largest: Size
    wanted: Size
    taps: int
    window_taps: int | None
    turned: tuple[tuple[int, float, int, int], ...]
    erased: tuple[tuple[int, Erased], ...]


class BatchPlan(NamedTuple):
    """How a batch is prepared: its groups, and their numbers in one row of int64, for the device.

    Of each group of N images the row holds their first bytes (N), the bytes of their rows (N), and the fields of a `Span`
    (6, N, 2); unless they are plain also the span of their windows (6, N, 2), and in the bits of float64 their colours (N, 3). Of
    several groups the images' places in the joined groups come last.
    """

    groups: tuple[Group, ...]
    numbers: Tensor


def num_spare_bytes(sizes: Sequence[Size]) -> int:
    """How many bytes have to follow the last image: as many as the widest one's rows have, since they are read, but not used."""
    return 3 * max(width for _, width in sizes)


def prepare_images(
    content: Tensor, sizes: Sequence[Size], variations: Sequence[Variation], preprocess: ImagePreprocess
) -> Tensor:
    """Decoded images as network inputs (N, 3, S, S), on the device where they lie.

    `content` is one row of bytes, image after image, each (H, W, 3) of its own of the `sizes`. They are varied as `variations`
    say, each as drawn for the size that its image is resized to.
    """
    return prepare_planned(F.pad(content, (0, num_spare_bytes(sizes))), plan_batch(sizes, variations, preprocess), preprocess)


def plan_batch(sizes: Sequence[Size], variations: Sequence[Variation], preprocess: ImagePreprocess) -> BatchPlan:
    """How images of these heights and widths, which lie one after another, are prepared and varied."""
    all_sizes = np.array(sizes, dtype=np.int64)
    starts = np.concatenate([[0], (3 * all_sizes.prod(axis=1)).cumsum()])
    members = list(_groups(sizes, [variation.colour is not None for variation in variations]))
    groups, rows = [], []
    for group in members:
        own, resized = [variations[number] for number in group], [frame_of(*sizes[number], preprocess) for number in group]
        made, numbers = _plan_group(all_sizes[group], np.array(resized, dtype=np.int64), own, preprocess)
        groups.append(made)
        rows += [starts[group], 3 * all_sizes[group, 1], *numbers]
    if len(members) > 1:
        rows.append(np.argsort(list(chain.from_iterable(members))))
    return BatchPlan(tuple(groups), torch.from_numpy(np.concatenate([row.ravel() for row in rows])))


def _plan_group(
    sizes: Numbers, frames: Numbers, variations: Sequence[Variation], preprocess: ImagePreprocess
) -> tuple[Group, list[Numbers]]:
    """A group of images of these `sizes` (N, 2), of which `frames` (N, 2, 2) tells what is kept and resized; and its numbers."""
    side, kept, resized = preprocess.image_size_px, frames[:, 0], frames[:, 1]
    geometries = [variation.geometry for variation in variations]
    mirrored, zeros = np.array([[0, int(geometry.mirrored)] for geometry in geometries]), np.zeros_like(sizes)
    is_plain, (height, width) = variations[0].colour is None, sizes.max(axis=0).tolist()
    high, wide = (side, side) if is_plain else resized.max(axis=0).tolist()
    taps = max_taps(float((kept / resized).max()), preprocess.interpolation)
    first = (resized - side) // 2 if is_plain else zeros
    span = np.stack([(sizes - kept) // 2, kept, resized, first, sizes, mirrored if is_plain else zeros])
    if is_plain:
        return Group(len(sizes), (height, width), (high, wide), taps, None, (), ()), [span]
    windows = np.array([((g.top, g.left), (g.num_rows, g.num_columns)) for g in geometries], dtype=np.int64)
    start, length = windows[:, 0], windows[:, 1]
    window = np.stack([start, length, np.full_like(length, side), zeros, resized, mirrored])
    colours = np.array([variation.colour for variation in variations], dtype=np.float64).view(np.int64)
    turned = tuple((i, g.degrees, *resized[i].tolist()) for i, g in enumerate(geometries) if g.degrees)
    erased = tuple((i, variation.erased) for i, variation in enumerate(variations) if variation.erased)
    window_taps = max_taps(float(length.max()) / side)
    return Group(len(sizes), (height, width), (high, wide), taps, window_taps, turned, erased), [span, window, colours]


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


def prepare_planned(content: Tensor, plan: BatchPlan, preprocess: ImagePreprocess) -> Tensor:
    """Images as network inputs (N, 3, S, S), on the device where the row of their bytes lies, with spare ones after the last."""
    numbers, place, prepared = plan.numbers.to(content.device, non_blocking=True), 0, []
    for group in plan.groups:
        own = numbers[place : place + group.num_images * (14 if group.window_taps is None else 29)]
        prepared.append(normalise_in_place(_prepare(content, own, group, preprocess), preprocess))
        place += len(own)
    return prepared[0] if len(prepared) == 1 else torch.cat(prepared).index_select(0, numbers[place:])


def _prepare(content: Tensor, numbers: Tensor, group: Group, preprocess: ImagePreprocess) -> Tensor:
    """A group's images as the network sees them (N, 3, S, S), in float from 0 to 255."""
    count, side, interpolation = group.num_images, preprocess.image_size_px, preprocess.interpolation
    starts, row_bytes = numbers[: 2 * count].view(2, count, 1).unbind()
    span = Span(*numbers[2 * count : 14 * count].view(6, count, 2).unbind())
    padded = _side_by_side(content, starts, row_bytes, group.largest)
    images = resize_sides(padded, weight_matrices(span, group.wanted, group.largest, group.taps, interpolation))
    images = (images.clamp_(0, 255) if interpolation == "bicubic" else images).round_()
    if group.window_taps is None:
        return images
    for number, degrees, height, width in group.turned:
        one = images[number, None, :, :height, :width]
        images[number, :, :height, :width] = turn(one.to(torch.uint8), degrees, "bilinear")[0]
    window = Span(*numbers[14 * count : 26 * count].view(6, count, 2).unbind())
    windows = resize_sides_whole(images, *whole_matrices(window, (side, side), group.wanted, group.window_taps))
    seen = recolour(windows, numbers[26 * count :].view(torch.float64).view(count, 3).float())
    for number, erased in group.erased:
        erase(seen[number], erased)
    return seen


def _side_by_side(content: Tensor, starts: Tensor, row_bytes: Tensor, largest: Size) -> Tensor:
    """Images (N, 3, H, W) in float; beyond a smaller one are bytes of others, which no weight counts."""
    height, width = largest
    rows = (starts + row_bytes * torch.arange(height, device=content.device)).clamp_(max=len(content) - 3 * width)
    # Every place that a row may begin at is a row of this view, so that one index a row is enough.
    gathered = content.unfold(0, 3 * width, 1)[rows].view(-1, height, width, 3)
    return gathered.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
