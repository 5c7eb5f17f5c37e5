"""The processes that train one model together: torch.distributed if it is initialised, else one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def single_process() -> Iterator[None]:
    """Until the block ends, this process is rank 0 of 1, whatever group it belongs to."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def rank() -> int:
    """This process's rank; 0 if it trains by itself."""
    return dist.get_rank() if _is_shared() else 0


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_shared() else 1


def _is_shared() -> bool:
    return dist.is_initialized() and not _ALONE.get()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's tensor, the same on all."""
    if num_ranks() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def all_gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows (N, ...) concatenated in the order of ranks, the same on all; each rank brings as many."""
    if num_ranks() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(num_ranks())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def broadcast(values: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank."""
    if num_ranks() > 1:
        dist.broadcast(values, src=0)
    return values


def wait_for_ranks() -> None:
    """Return once every rank has called this."""
    if num_ranks() > 1:
        dist.barrier()


def synchronise_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """The module to call forward, so that its backward pass leaves on every rank the gradients' mean over ranks."""
    if num_ranks() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    # Buffers are averaged once an epoch (below): sent before every step they would be rank 0's alone.
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def synchronising(forward: nn.Module, now: bool) -> AbstractContextManager[None]:
    """The context of a forward and backward pass after which ranks exchange gradients, if `now`, or each go on adding up.

    `forward` is what `synchronise_gradients` gave.
    """
    if now or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def average_statistics(model: nn.Module, like: nn.Module | None = None) -> None:
    """Replaces BatchNorm's running statistics by their mean over ranks, in modules in train mode; frozen ones stay.

    With `like`, a model of the same structure, the modes of its modules decide. Every rank must call it.
    """
    if num_ranks() == 1:
        return
    for module, judged in zip(model.modules(), (like or model).modules(), strict=True):
        if judged.training:
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.copy_(sum_over_ranks(buffer) / num_ranks())
