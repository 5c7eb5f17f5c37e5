"""Antialiased resizing of many images at once: a matrix for each side of each image, with the weights of `F.interpolate`.

Float images of `F.interpolate(..., antialias=True)` are sums by weights in float32. Its uint8 images are computed with whole
numbers, as Pillow computes them: weights are rounded to 15 bits, and pixels after each of the two sides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heads.catalogue import Interpolation

# In pixels of the coarser of both images: how far the filter reaches.
REACH: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}
# Of the cubic filter, as Pillow and torch choose it where they smooth.
CUBIC = -0.5
MAX_WEIGHT_BITS, MAX_PRECISION = 15, 22


class Span(NamedTuple):
    """How one side of N images is resized, each field (N) in int64.

    `length` pixels from `start` on become `resized` pixels; beyond the `limit` pixels that an image has, its edge is repeated.
    Of the resized ones those from `first` on are wanted, in reverse if `mirrored` is 1.
    """

    start: Tensor
    length: Tensor
    resized: Tensor
    first: Tensor
    limit: Tensor
    mirrored: Tensor


def max_taps(shrinking: float, interpolation: Interpolation = "bilinear") -> int:
    """The most pixels that one resized pixel is made of, if a side shrinks by at most this factor."""
    return int(2 * REACH[interpolation] * max(shrinking, 1.0)) + 2


def weight_matrices(span: Span, num_wanted: int, num_given: int, num_taps: int, interpolation: Interpolation) -> Tensor:
    """The matrices (N, wanted, given) in float32 by which sides are resized; rows beyond a resized side hold anything."""
    places, weights = _weights(span, num_wanted, num_taps, interpolation, torch.float32)
    return _spread(span, places, weights, num_given)


def whole_matrices(span: Span, num_wanted: int, num_given: int, num_taps: int) -> tuple[Tensor, Tensor]:
    """The matrices (N, wanted, given) of whole numbers, and the number (N) that each one's sums are divided by: bilinear."""
    places, weights = _weights(span, num_wanted, num_taps, "bilinear", torch.float64)
    # The finest precision at which the largest weight, rounded, stays below 2 ** 15.
    powers = 2.0 ** torch.arange(1, MAX_PRECISION + 1, device=weights.device, dtype=torch.float64)
    fits = (weights.amax(dim=(1, 2))[:, None] * powers + 0.5).floor() < 2**MAX_WEIGHT_BITS
    divisors = 2.0 ** fits.sum(dim=1)
    rounded = (weights * divisors[:, None, None] + 0.5).floor().float()
    return _spread(span, places, rounded, num_given), divisors.float()


def resize_sides(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (N, C, H, W) in float, resized by the matrices (N, h, H) of their height and (N, w, W) of their width."""
    return _resize_height(_resize_width(pixels, columns), rows)


def resize_sides_whole(pixels: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """The same with whole numbers, rounded after each side, as uint8 images are resized."""
    narrowed = _rounded(_resize_width(pixels, columns[0]), columns[1])
    return _rounded(_resize_height(narrowed, rows[0]), rows[1])


def _weights(
    span: Span, num_wanted: int, num_taps: int, interpolation: Interpolation, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """For each wanted pixel the places (N, wanted, taps) in the span that it is made of, and their weights, which sum to 1."""
    length, resized, first = (field[:, None].to(dtype) for field in (span.length, span.resized, span.first))
    number = torch.arange(num_wanted, device=length.device, dtype=dtype)
    number = first + torch.where(span.mirrored[:, None] > 0, num_wanted - 1 - number, number)
    shrinking = length / resized
    centre, stretch = shrinking * (number + 0.5), shrinking.clamp(min=1.0)
    reach = REACH[interpolation] * stretch
    begin = (centre - reach + 0.5).floor().clamp(min=0.0)
    end = torch.minimum((centre + reach + 0.5).floor(), length)
    places = begin[..., None] + torch.arange(num_taps, device=length.device, dtype=dtype)
    distance = ((places - centre[..., None] + 0.5) / stretch[..., None]).abs()
    weights = torch.where(places < end[..., None], _filter(distance, interpolation), 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    return places.long(), weights / torch.where(total > 0, total, 1.0)


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0.0)
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _spread(span: Span, places: Tensor, weights: Tensor, num_given: int) -> Tensor:
    """Weights by tap (N, wanted, taps) as matrices (N, wanted, given): what lies beyond an image falls on its edge."""
    edge = span.limit[:, None, None] - 1
    columns = torch.minimum((span.start[:, None, None] + places).clamp(min=0), edge)
    matrices = torch.zeros(*weights.shape[:2], num_given, device=weights.device)
    return matrices.scatter_add_(2, columns, weights)


def _resize_width(pixels: Tensor, columns: Tensor) -> Tensor:
    num, channels, height, width = pixels.shape
    resized = torch.bmm(pixels.reshape(num, channels * height, width), columns.transpose(1, 2))
    return resized.reshape(num, channels, height, -1)


def _resize_height(pixels: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([torch.bmm(rows, channel) for channel in pixels.unbind(dim=1)], dim=1)


def _rounded(sums: Tensor, divisors: Tensor) -> Tensor:
    return sums.div_(divisors[:, None, None, None]).add_(0.5).floor_().clamp_(0, 255)
