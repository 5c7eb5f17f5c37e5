"""Stacks whose tensors begin in memory as tensors of their own would, so that products of them give the same bits.

Intel's MKL, which multiplies matrices in PyTorch on x86 processors, goes by where in memory they begin: on AMD processors, and
on Intel ones without AVX2, a matrix that does not begin at a multiple of 16 bytes is multiplied in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

# PyTorch begins every new tensor in a processor's memory at a multiple of this.
ALIGNMENT_BYTES = 64


def is_aligned(tensor: Tensor) -> bool:
    """Whether the tensor begins in memory where a new one could."""
    return tensor.data_ptr() % ALIGNMENT_BYTES == 0


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if it is aligned, else a copy."""
    return tensor if is_aligned(tensor) else tensor.clone()


def empty_stack(num: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised stack (`num`, *shape) of tensors of this one's dtype and device, each of them aligned."""
    step = ALIGNMENT_BYTES // like.element_size()
    strides = [math.prod(shape[axis:]) for axis in range(1, len(shape) + 1)]
    return like.new_empty_strided((num, *shape), (math.ceil(math.prod(shape) / step) * step, *strides))


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors, of one shape, in a stack (V, ...), each of them aligned."""
    stacked = empty_stack(len(tensors), tensors[0].shape, tensors[0])
    for place, tensor in zip(stacked, tensors, strict=True):
        place.copy_(tensor)
    return stacked
