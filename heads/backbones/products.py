"""The multiply-adds of a network's forward pass, counted without computing its products.

Tensors of the meta device would do as well, but the first operation on one of them loads torch's compiler, which takes a process
one and a half seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Shape = Sequence[int]


def without_memory(shape: Shape) -> Tensor:
    """Zeros of a shape that take the memory of one number; they can be read, not written to."""
    return torch.zeros(()).expand(*shape)


def empty_of_memory(part: nn.Module) -> None:
    """Put `without_memory` in the place of all parameters."""
    for module in part.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(without_memory(parameter.shape), requires_grad=False))


class ProductCounter(TorchFunctionMode):
    """Counts the multiply-adds of convolutions and matrix products in its block; their outputs are zeros without memory.

    What goes element by element counts for nothing and is skipped as well; other functions are computed as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in RECURRENT:
            self.multiply_adds += _recurrent(*args)
        if func not in SKIPPED:
            return func(*args, **options)
        outputs, multiply_adds = SKIPPED[func](*args, **options)
        self.multiply_adds += multiply_adds
        return outputs


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
    return without_memory((*inputs.shape[:-1], len(weight))), inputs.numel() * len(weight)


def _matmul(left: Tensor, right: Tensor) -> tuple[Tensor, int]:
    stacked = _broadcast(left.shape[:-2], right.shape[:-2])
    outputs = without_memory((*stacked, left.shape[-2], right.shape[-1]))
    return outputs, outputs.numel() * left.shape[-1]


def _einsum(equation: str, *operands: Tensor) -> tuple[Tensor, int]:
    given, asked = equation.replace(" ", "").split("->")
    sizes = {
        letter: size
        for letters, operand in zip(given.split(","), operands, strict=True)
        for letter, size in zip(letters, operand.shape, strict=True)
    }
    return without_memory([sizes[letter] for letter in asked]), torch.Size(sizes.values()).numel()


def _convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Shape = (1, 1),
    padding: Shape | Literal["same"] = (0, 0),
    dilation: Shape = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, int]:
    if padding == "same":
        extent = list(inputs.shape[2:])
    else:
        places = zip(inputs.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        extent = [(length + 2 * around - apart * (kernel - 1) - 1) // step + 1 for length, kernel, step, around, apart in places]
    outputs = without_memory((len(inputs), len(weight), *extent))
    return outputs, outputs.numel() * weight[0].numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> tuple[Tensor, int]:
    outputs = without_memory((*query.shape[:-1], value.shape[-1]))
    return outputs, query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _multi_head_attention(query: Tensor, *args: Any, **options: Any) -> tuple[tuple[Tensor, None], int]:
    """Of a sequence (L, N, C) to itself: three maps of what goes in, one of what comes out, and attention between."""
    length, num, channels = query.shape
    return (without_memory(query.shape), None), 4 * query.numel() * channels + 2 * num * length**2 * channels


def _elementwise(left: Tensor, right: Tensor | float, **options: Any) -> tuple[Tensor, int]:
    return without_memory(_broadcast(left.shape, right.shape if isinstance(right, Tensor) else ())), 0


def _broadcast(left: Shape, right: Shape) -> Shape:
    # torch's own function would load a part of the compiler.
    return [max(sizes) for sizes in zip_longest(reversed(left), reversed(right), fillvalue=1)][::-1]


def _same(inputs: Tensor, *args: Any, **options: Any) -> tuple[Tensor, int]:
    return without_memory(inputs.shape), 0


def _joined(parts: Sequence[Tensor], dim: int = 0) -> tuple[Tensor, int]:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return without_memory(shape), 0


def _recurrent(inputs: Tensor, state: object, weights: Sequence[Tensor], *args: Any) -> int:
    return inputs.shape[:-1].numel() * sum(weight.numel() for weight in weights if weight.ndim == 2)


# What is skipped: its outputs' shapes and its multiply-adds.
SKIPPED: Mapping[Callable[..., Any], Callable[..., tuple[Any, int]]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.bmm: _matmul,
    torch.einsum: _einsum,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    Tensor.__add__: _elementwise,
    Tensor.__iadd__: _elementwise,
    Tensor.add: _elementwise,
    Tensor.add_: _elementwise,
    Tensor.__mul__: _elementwise,
    Tensor.mul: _elementwise,
    torch.add: _elementwise,
    torch.mul: _elementwise,
    F.relu: _same,
    F.layer_norm: _same,
    F.softmax: _same,
    F.normalize: _same,
    torch.cat: _joined,
}
# These run as they are, beside being counted: they are small.
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh)
