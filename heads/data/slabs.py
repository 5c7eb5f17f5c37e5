"""Memory that reading processes share with the one that trains: they write a batch where the device copies it from.

Else each batch would get shared memory of its own, and be copied into pinned memory, page by page, by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

# A batch of 128 images of 256 px takes 25 MB. One that takes more goes the other way.
SLAB_BYTES = 32 * 2**20
# Slabs beyond those that are read into: what is still being copied. More than MAX_SLABS would take too much memory.
NUM_SPARE, MAX_SLABS = 4, 64
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where a tensor of one dimension lies in a slab, in bytes: what a reading process sends in its place."""

    start: int
    num_bytes: int
    dtype: torch.dtype


@dataclass
class _Open:
    """The slab that the batch in work is written to, and how many of its bytes are used."""

    slab: Tensor
    used: int = 0


# In a reading process while it reads a batch.
_open: _Open | None = None


def empty_bytes(num_bytes: int) -> Tensor:
    """A row of bytes to fill: in the slab of the batch in work, if there is one with room, else in memory of its own."""
    if _open is None or _open.used + num_bytes > len(_open.slab):
        return torch.empty(num_bytes, dtype=torch.uint8)
    row = _open.slab[_open.used : _open.used + num_bytes]
    _open.used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
    return row


def in_slab(tensor: Tensor) -> Tensor:
    """A tensor of one dimension, copied to where `empty_bytes` says."""
    row = empty_bytes(tensor.nbytes)
    return row.copy_(tensor.view(torch.uint8)).view(tensor.dtype)


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in pinned memory; one that lies in a slab, and has not been looked up yet, as it is."""
    return tensor.pin_memory() if isinstance(tensor, Tensor) else tensor


class Slabs:
    """A ring of slabs, made before the processes fork that write to them."""

    def __init__(self, number: int) -> None:
        # Anonymous memory: a container's /dev/shm may hold 64 MB. It takes none before it is written to.
        self._slabs = [torch.frombuffer(mmap(-1, SLAB_BYTES), dtype=torch.uint8) for _ in range(min(number, MAX_SLABS))]
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque()
        self._pass = 0
        self._registered: set[int] = set()

    def start_pass(self) -> None:
        """Takes all slabs back, also those of a pass that was given up; the processes must be done with them."""
        if len(self._free) < len(self._slabs) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._pass += 1
        self._free = deque((number, None) for number in range(len(self._slabs)))

    def take(self) -> int | None:
        """The number of the slab that is free for longest, once the device has copied it; None if there is none."""
        if not self._free:
            return None
        number, copied = self._free.popleft()
        if copied:
            copied.synchronize()
        return number

    def fill(self, number: int, job: Callable[[], Any]) -> Any:
        """In a reading process: what the job gives, with pieces in place of what it wrote to the slab."""
        global _open
        _open = _Open(self._slabs[number])
        try:
            return _replaced(job(), partial(_as_piece, self._slabs[number]))
        finally:
            _open = None

    def look_up(self, number: int, read: Any) -> Any:
        """What was read, with its tensors, which hold until the slab is given back."""
        if torch.cuda.is_available() and number not in self._registered:
            self._registered.add(number)
            _register(self._slabs[number])
        return _replaced(read, partial(_as_tensor, self._slabs[number]))

    def lend(self, number: int) -> Callable[[], None]:
        """A function that gives the slab back: free once what is queued on the current stream by then is done."""
        return partial(self._give_back, number, self._pass)

    def _give_back(self, number: int, of_pass: int) -> None:
        if of_pass == self._pass:
            copied = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
            self._free.append((number, copied))


def _replaced(read: Any, replace: Callable[[Any], Any]) -> Any:
    """The same with the tensors and pieces in it, and in the tuples of it, replaced."""
    if isinstance(read, tuple):
        parts = [_replaced(part, replace) for part in read]
        return type(read)(*parts) if hasattr(read, "_fields") else tuple(parts)
    return replace(read) if isinstance(read, Tensor | _Piece) else read


def _as_piece(slab: Tensor, tensor: Tensor) -> Tensor | _Piece:
    is_within = tensor.untyped_storage().data_ptr() == slab.untyped_storage().data_ptr()
    return _Piece(tensor.data_ptr() - slab.data_ptr(), tensor.nbytes, tensor.dtype) if is_within else tensor


def _as_tensor(slab: Tensor, piece: Tensor | _Piece) -> Tensor:
    if isinstance(piece, Tensor):
        return piece
    return slab[piece.start : piece.start + piece.num_bytes].view(piece.dtype)


def _register(slab: Tensor) -> None:
    """Pins the slab, so that a device copies it while the host goes on; where that fails, the host waits for each copy."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(slab.data_ptr(), slab.nbytes, 0)):
        # The error would else be raised by the next call.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
