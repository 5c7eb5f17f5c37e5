"""A digest of what is frozen, to be compared before and after a training."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch

from heads.model.model import Model
from heads.phases import Phase


def frozen_digest(model: Model, phase: Phase) -> str:
    """The sha256 of the frozen stages' parameters and buffers, names and bytes, as 64 hex digits."""
    frozen, digest = model.backbone[: phase.num_frozen_stages], hashlib.sha256()
    for name, tensor in chain(frozen.named_parameters(), frozen.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
