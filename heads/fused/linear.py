"""The forward and backward pass of many heads of one shape: products one by one on a CPU, all else at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.fused.alignment import aligned, empty_stack, is_aligned
from heads.model.precision import is_exact


def fused_forward(head: nn.Sequential, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The outputs (V, N, C) of V heads for the same rows (N, I), by stacked weights (V, ...) under their names in `head`.

    The rows are the output of `head`'s first layer, which has no weights; linear layers, activations and dropout follow, which
    drops the same for all heads.
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
    if not is_exact(rows.device):
        return torch.baddbmm(bias.unsqueeze(1), rows.expand(len(weight), *rows.shape[-2:]), weight.mT)
    outputs: Tensor = _Linear.apply(rows, weight, bias)
    return outputs


class _Linear(torch.autograd.Function):
    """The linear layer of V heads on a CPU, as `_linear` describes it.

    Each product is the call that its head would make alone, of matrices aligned as its own, so that no bit depends on its
    neighbours: a product of stacks is split up by their number.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        # Without gaps between heads, with which activations would compute an element in another way.
        outputs = rows.new_empty(len(weight), rows.shape[-2], weight.shape[1])
        for out, own, matrix, offset in zip(outputs, _each(rows, weight), map(aligned, weight), bias, strict=True):
            _multiply(torch.addmm, offset, own, matrix.mT, out=out)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        of_rows, of_bias = None, gradient.sum(dim=1)
        if ctx.needs_input_grad[0]:
            of_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
            for out, own, matrix in zip(of_rows, map(aligned, gradient), map(aligned, weight), strict=True):
                _multiply(torch.mm, own, matrix, out=out)
        of_weight = empty_stack(len(weight), weight.shape[1:], weight)
        for out, own, own_gradient in zip(of_weight, _each(rows, weight), map(aligned, gradient), strict=True):
            _multiply(torch.mm, own_gradient.mT, own, out=out)
        return of_rows, of_weight, of_bias


def _each(rows: Tensor, weight: Tensor) -> Iterable[Tensor]:
    return map(aligned, rows) if rows.ndim == 3 else [aligned(rows)] * len(weight)


def _multiply(product: Callable[..., Tensor], *matrices: Tensor, out: Tensor) -> None:
    """Writes the product to `out`, by way of aligned memory if `out` is not aligned."""
    if is_aligned(out):
        product(*matrices, out=out)
    else:
        out.copy_(product(*matrices))
