"""Where a model computes, and in which arithmetic: its device, its layout in memory, autocast."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import torch
from torch import nn

from heads.errors import HeadsError
from heads.spec import Precision

M = TypeVar("M", bound=nn.Module)
EXACT_DEVICES = ("cpu",)


def is_exact(device: torch.device) -> bool:
    """Whether trainings on this device end with the same bits in float32 whatever trains beside them, for which calls are made
    one by one; else they end alike but for rounding."""
    return device.type in EXACT_DEVICES


def place_model(model: M, device: torch.device, *, channels_last: bool = True) -> M:
    """The model itself on `device`, its weights laid out channels last: up to three times as fast, on a CPU too."""
    for part in model.children():
        # A backbone that many models share is placed once: to move it again takes longer than a step of a head.
        if not _is_placed(part, device, channels_last=channels_last):
            part.to(device)
            if channels_last:
                part.to(memory_format=torch.channels_last)
    return model


def _is_placed(part: nn.Module, device: torch.device, *, channels_last: bool) -> bool:
    return all(
        tensor.device == device
        and (not channels_last or tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last))
        for tensor in (*part.parameters(), *part.buffers())
    )


@cache
def _has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported())


def autocast(device: torch.device, precision: Precision, *, keeps_casts: bool = True) -> torch.autocast:
    """The context in which a forward pass runs in the arithmetic of `computing_dtype`.

    It keeps weights that are trained as they were cast, until it ends, but not if `keeps_casts` is false.
    """
    dtype = computing_dtype(device, precision)
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else None, enabled=half, cache_enabled=keeps_casts)


def computing_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The arithmetic of a forward pass: the one asked for, or by `auto` bfloat16 on a GPU that has it, else float32.

    Raises HeadsError on float16 elsewhere than on CUDA, where gradients would vanish unscaled and nothing is gained.
    """
    if precision == "fp16":
        if device.type != "cuda":
            raise HeadsError(f"precision fp16 needs a CUDA GPU, but this is {device.type}; use auto, fp32 or bf16")
        return torch.float16
    automatic = precision == "auto" and device.type == "cuda" and _has_bfloat16()
    return torch.bfloat16 if automatic or precision == "bf16" else torch.float32
