"""torchvision's models before anything is in them: to be filled from a file, or to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heads.backbones.table import BACKBONES

# What fills parameters at random; functions of nn.init come whole, and what they call is not seen any more.
DRAWS = (
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
    *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
)


def build_skeleton(name: str) -> nn.Module:
    """torchvision's model with its parameters' shapes but no storage for them, quick to make; buffers are real."""
    with _ParametersWithoutStorage():
        return build_blank(name)


def build_blank(name: str) -> nn.Module:
    """torchvision's model with zeros where it would draw at random, to be filled: made in a fraction of the time."""
    with _NothingDrawn():
        return BACKBONES[name].build()


class _NothingDrawn(TorchFunctionMode):
    """Layers fill their parameters at random, which takes long, on the meta device too. Zeros, since some draw until all fits."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func not in DRAWS:
            return func(*args, **given)
        tensor: Tensor = args[0] if args else given["tensor"]
        tensor.detach().zero_()
        return tensor


class _ParametersWithoutStorage(TorchFunctionMode):
    """Layers make their parameters by `torch.empty`. All of them on the meta device would not do: RegNet computes with tensors
    how wide its layers are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)
