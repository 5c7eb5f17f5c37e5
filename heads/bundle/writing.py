"""The weights of a model as a file of safetensors, written tensor by tensor, and digested on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heads.model.model import Model

# The types that weights have by safetensors' names, in the order in which it puts their tensors from the last to the first.
TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
HEADER_STEP = 8
# So much at once stays in a processor's cache between its digest and its way to the disk.
BLOCK_BYTES = 2**19


class SharedBackbone:
    """A backbone that models share, and nothing changes any more: its part of their files is digested once."""

    def __init__(self, backbone: nn.Sequential) -> None:
        self.backbone = backbone
        # After a header and the backbone's tensors, by the header.
        self.digests: dict[bytes, Any] = {}


def write_weights(file: Path, model: Model, shared: SharedBackbone | None = None) -> str:
    """Write a model's weights to a new file, with the bytes of `safetensors.torch.save`; the file's sha256 as hex digits.

    `shared` is the model's own backbone, if it is one that other models have as well.
    """
    weights = dict(sorted(model.state_dict().items(), key=lambda named: (-list(TYPES).index(named[1].dtype), named[0])))
    header, known = _header(weights), None
    if shared:
        assert model.backbone is shared.backbone, "models that share a backbone have the same one"
        known = shared.digests.get(header)
    found = known.copy() if known else hashlib.sha256(header)
    is_backbone = True
    with file.open("wb") as output:
        output.write(header)
        for name, tensor in weights.items():
            if is_backbone and not name.startswith("backbone."):
                is_backbone = False
                if shared and not known:
                    shared.digests[header] = found.copy()
            for block in _blocks(tensor):
                output.write(block)
                if not (known and is_backbone):
                    found.update(block)
    return str(found.hexdigest())


def _header(weights: Mapping[str, Tensor]) -> bytes:
    ends = list(accumulate(tensor.nbytes for tensor in weights.values()))
    entries = {
        name: {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end - tensor.nbytes, end]}
        for (name, tensor), end in zip(weights.items(), ends, strict=True)
    }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % HEADER_STEP)
    return len(padded).to_bytes(8, "little") + padded


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, row by row, some at a time."""
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    yield from (content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES))
