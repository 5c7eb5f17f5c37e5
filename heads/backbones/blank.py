"""torchvision's models without random weights: to be filled from a file, or to read shapes from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heads.backbones.table import row_of
from heads.bert_size import stages_of

# The functions that fill parameters at random. A call of nn.init is intercepted whole, so what it calls is not seen.
DRAWS = (
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
    *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
)


def build_skeleton(name: str) -> nn.Module:
    """torchvision's model with its parameters' shapes but no storage for them, quick to make; buffers are real."""
    with _ParametersWithoutStorage():
        return build_blank(name)


def skeleton_stages(name: str) -> nn.Sequential:
    """The stages of a backbone, named as in `BACKBONE_STAGES`, as `build_skeleton` makes them."""
    return nn.Sequential(OrderedDict(zip(stages_of(name), row_of(name).split(build_skeleton(name)), strict=True)))


def build_blank(name: str) -> nn.Module:
    """torchvision's model with zeros where it would draw at random, to be filled: made in a fraction of the time."""
    with NothingDrawn():
        return row_of(name).build()


class NothingDrawn(TorchFunctionMode):
    """Zeros for random draws, which take long, on the meta device too. Zeros, since some layers draw until every value fits."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func not in DRAWS:
            return func(*args, **options)
        tensor: Tensor = args[0] if args else options["tensor"]
        tensor.detach().zero_()
        return tensor


class _ParametersWithoutStorage(TorchFunctionMode):
    """Makes `torch.empty`, by which layers make their parameters, give tensors on the meta device. Other functions go on as they
    were: RegNet computes the widths of its layers with real tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)
