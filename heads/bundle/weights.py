"""The weights of a bundle as its model: sizes compared before anything is read, then names, types, shapes and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor

from heads.bundle.contents import WEIGHTS, Contents
from heads.model.model import Model, build_model, build_outline
from heads.spec import Variant

# A header has under 200 bytes a tensor beside its name.
HEADER_BYTES_A_TENSOR = 512
HEADER_BYTES = 4096


def read_model(contents: Contents, variant: Variant, classes: Mapping[str, Sequence[str]]) -> Model:
    """The variant's model with the weights of the bundle.

    Raises BundleError if their digest differs, ValueError or SafetensorError if they are not the variant's: nothing is then
    allocated that the variant's own shapes do not need, and nothing read that is longer than they are.
    """
    expected = build_outline(variant, classes).state_dict()
    least = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    most = least + HEADER_BYTES + sum(HEADER_BYTES_A_TENSOR + len(name) for name in expected)
    if not least <= (size := contents.size(WEIGHTS)) <= most:
        raise ValueError(f"{WEIGHTS} has {size} bytes, and those of its variant have {least} to {most}")
    state = safetensors.torch.load(contents.read(WEIGHTS, most))
    _check(state, expected)
    model = build_model(variant, classes, None)
    model.load_state_dict(state)
    return model


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if odd := sorted(state.keys() ^ expected.keys()):
        raise ValueError(f"{WEIGHTS} and its variant do not have the same weights: {odd[0]!r} and {len(odd) - 1} more differ")
    for name, wanted in expected.items():
        tensor = state[name]
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            found, right = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, wanted))
            raise ValueError(f"{WEIGHTS}: {name!r} is {found}, and its variant's is {right}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{WEIGHTS}: {name!r} has values that are no finite numbers, so that no answer would mean anything")
