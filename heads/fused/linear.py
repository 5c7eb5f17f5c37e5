"""The forward and backward pass of heads of one shape, each with weights of its own: products one by one, all else at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.fused.alignment import aligned, empty_stack, is_aligned

# Devices on which products are taken one by one.
ONE_BY_ONE = ("cpu",)


def fused_forward(head: nn.Sequential, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """What V heads give of the same rows (N, I), (V, N, C), by their stacked weights (V, ...) under their names in `head`.

    The rows are what `head`'s first layer gives, which has no weights; linear ones follow, activations, and dropout, which
    drops the same for all.
    """
    for name, layer in islice(head.named_children(), 1, None):
        if isinstance(layer, nn.Linear):
            rows = _linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])
        elif isinstance(layer, nn.Dropout):
            rows = rows * F.dropout(rows.new_ones(rows.shape[1:]), layer.p, layer.training)
        else:
            rows = layer(rows)
    return rows


def _linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows (V, N, I), or (N, I) that all share, times weights (V, O, I) plus biases (V, O), as (V, N, O)."""
    kind = rows.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), bias.to(dtype)
    given: Tensor = _Linear.apply(rows, weight, bias)
    return given


class _Linear(torch.autograd.Function):
    """On a CPU each product is the call that the head would make by itself, of matrices that begin in memory as its own would,
    so that no bit of it depends on its neighbours: a product of stacks is cut up by how many they are. On a GPU a call takes
    longer than the product of a small head."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        if rows.device.type not in ONE_BY_ONE:
            return torch.baddbmm(bias.unsqueeze(1), _spread(rows, weight), weight.mT)
        # Without gaps: activations compute an element of a stack that has some in another way.
        given = rows.new_empty(len(weight), rows.shape[-2], weight.shape[1])
        for out, own, matrix, offset in zip(given, _each(rows, weight), map(aligned, weight), bias, strict=True):
            _multiply(torch.addmm, offset, own, matrix.mT, out=out)
        return given

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        of_rows, of_bias = None, gradient.sum(dim=1)
        if rows.device.type not in ONE_BY_ONE:
            if ctx.needs_input_grad[0]:
                of_rows = torch.bmm(gradient, weight)
            return of_rows, torch.bmm(gradient.mT, _spread(rows, weight)), of_bias
        if ctx.needs_input_grad[0]:
            of_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
            for out, own, matrix in zip(of_rows, map(aligned, gradient), map(aligned, weight), strict=True):
                _multiply(torch.mm, own, matrix, out=out)
        of_weight = empty_stack(len(weight), weight.shape[1:], weight)
        for out, own, given in zip(of_weight, _each(rows, weight), map(aligned, gradient), strict=True):
            _multiply(torch.mm, given.mT, own, out=out)
        return of_rows, of_weight, of_bias


def _spread(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.expand(len(weight), *rows.shape[-2:])


def _each(rows: Tensor, weight: Tensor) -> Iterable[Tensor]:
    return map(aligned, rows) if rows.ndim == 3 else [aligned(rows)] * len(weight)


def _multiply(product: Callable[..., Tensor], *matrices: Tensor, out: Tensor) -> None:
    """Writes what the product gives to `out`, by way of memory that is aligned."""
    if is_aligned(out):
        product(*matrices, out=out)
    else:
        out.copy_(product(*matrices))
