"""Whether matrices lie in memory as tensors of their own do, asked at each product that PyTorch is really told to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.mm.out, ATEN.addmm.default, ATEN.addmm.out)


class Products(TorchDispatchMode):
    """While entered, counts products and keeps of each that has one a matrix that does not begin at a multiple of 64 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.misaligned = 0, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.count += 1
            # The first of addmm is no matrix: it is copied to the output before the product is added to it.
            matrices = [*args[-2:], given]
            assert all(isinstance(matrix, Tensor) for matrix in matrices)
            if any(matrix.data_ptr() % 64 for matrix in matrices):
                self.misaligned.append(f"{func} of {[(tuple(matrix.shape), matrix.data_ptr() % 64) for matrix in matrices]}")
        return given
