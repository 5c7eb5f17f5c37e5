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
    """How heights and widths of N images are resized, each field (N, 2) in int64.

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


Size = tuple[int, int]


def weight_matrices(span: Span, wanted: Size, given: Size, num_taps: int, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """The matrices in float32 by which heights (N, h, H) and widths (N, w, W) are resized, from sizes `given` to those `wanted`.

    Rows beyond a resized side hold anything.
    """
    places, weights = _weights(span, max(wanted), num_taps, interpolation, torch.float32)
    return _spread(span, places, weights, wanted, given)


def whole_matrices(span: Span, wanted: Size, given: Size, num_taps: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The same of whole numbers, and the numbers (N, 2) that their sums are divided by: bilinear."""
    places, weights = _weights(span, max(wanted), num_taps, "bilinear", torch.float64)
    # The finest precision at which the largest weight, rounded, stays below 2 ** 15.
    powers = 2.0 ** torch.arange(1, MAX_PRECISION + 1, device=weights.device, dtype=torch.float64)
    fits = (weights.amax(dim=(2, 3))[..., None] * powers + 0.5).floor() < 2**MAX_WEIGHT_BITS
    divisors = 2.0 ** fits.sum(dim=-1)
    rounded = (weights * divisors[..., None, None] + 0.5).floor().float()
    return _spread(span, places, rounded, wanted, given), divisors.float()


def resize_sides(pixels: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """Pixels (N, C, H, W) in float, resized by the matrices of their heights and widths."""
    return _resize_height(_resize_width(pixels, matrices[1]), matrices[0])


def resize_sides_whole(pixels: Tensor, matrices: tuple[Tensor, Tensor], divisors: Tensor) -> Tensor:
    """The same with whole numbers, rounded after each side, as uint8 images are resized."""
    narrowed = _rounded(_resize_width(pixels, matrices[1]), divisors[:, 1])
    return _rounded(_resize_height(narrowed, matrices[0]), divisors[:, 0])


def _weights(
    span: Span, num_wanted: int, num_taps: int, interpolation: Interpolation, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """For each wanted pixel the places (N, 2, wanted, taps) in the span that it is made of, and their weights: in sum 1."""
    length, resized, first = (field[..., None].to(dtype) for field in (span.length, span.resized, span.first))
    number = torch.arange(num_wanted, device=length.device, dtype=dtype)
    number = first + torch.where(span.mirrored[..., None] > 0, num_wanted - 1 - number, number)
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


def _spread(span: Span, places: Tensor, weights: Tensor, wanted: Size, given: Size) -> tuple[Tensor, Tensor]:
    """Weights by tap (N, 2, wanted, taps) as matrices (N, h, H) and (N, w, W): what lies beyond an image falls on its edge."""
    edge = span.limit[..., None, None] - 1
    columns = torch.minimum((span.start[..., None, None] + places).clamp_(min=0), edge)
    matrices = torch.zeros(*weights.shape[:3], max(given), device=weights.device).scatter_add_(3, columns, weights)
    return matrices[:, 0, : wanted[0], : given[0]], matrices[:, 1, : wanted[1], : given[1]]


def _resize_width(pixels: Tensor, columns: Tensor) -> Tensor:
    num, channels, height, width = pixels.shape
    resized = torch.bmm(pixels.reshape(num, channels * height, width), columns.transpose(1, 2))
    return resized.reshape(num, channels, height, -1)


def _resize_height(pixels: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([torch.bmm(rows, channel) for channel in pixels.unbind(dim=1)], dim=1)


def _rounded(sums: Tensor, divisors: Tensor) -> Tensor:
    return sums.div_(divisors[:, None, None, None]).add_(0.5).floor_().clamp_(0, 255)
