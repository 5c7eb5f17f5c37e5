"""A shard: a safetensors file whose header holds its keys and a checksum for each tap, named by the digest of that header."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import HeadsError
from heads.features.folder import SUFFIX, Opened
from heads.features.keys import FORMAT, PACKED, Packed
from heads.features.place import Readable, ShardPlace

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000
CHUNK_BYTES = 1 << 20

R = TypeVar("R")


class FeatureError(HeadsError):
    """Features that are damaged or not there; `TrunkFeatures.missing` says which to compute."""


class StrangerError(FeatureError):
    """Another program's file under a shard's name: it is left alone."""


@dataclass(frozen=True)
class Layout:
    """The shape and dtype of one sample's features at a tap."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes a sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


@dataclass(frozen=True)
class Block:
    """Where a tap's rows lie in a shard's file, `offset` bytes from its start, and their checksum."""

    layout: Layout
    offset: int
    crc32: int


@dataclass(frozen=True)
class Shard:
    """A shard's header: its keys (n) in the order of its rows, and its taps."""

    name: str
    num_bytes: int
    keys: Packed = field(repr=False)
    taps: Mapping[str, Block]


def make_shard(trunk: str, keys: Packed, tensors: Mapping[str, Tensor]) -> tuple[str, bytes]:
    """The name and the content of a shard that holds `tensors` (n, ...) by tap under `keys` (n); equal arguments, equal bytes."""
    seen: set[int] = set()
    rows: dict[str, Tensor] = {}
    for tap, features in tensors.items():
        tensor = features.detach().cpu().contiguous()
        # safetensors refuses taps that share memory, as a view and what it views do.
        storage = tensor.untyped_storage().data_ptr()
        rows[tap] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    facts = {
        "format": FORMAT,
        "trunk": trunk,
        "keys": base64.b64encode(keys.tobytes()).decode(),
        "crc32": {tap: zlib.crc32(bytes_of(tensor)) for tap, tensor in rows.items()},
    }
    # One entry, since safetensors writes the entries of its metadata in no fixed order.
    content = safetensors.torch.save(rows, {"shard": json.dumps(facts, sort_keys=True)})
    header_end = 8 + int.from_bytes(content[:8], "little")
    return _name_of(memoryview(content)[:header_end]), content


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes that may be written to."""
    flat: NDArray[np.uint8] = tensor.view(-1).view(torch.uint8).numpy()
    return flat.data


def read_shard(place: ShardPlace, trunk: str, name: str) -> Shard:
    """A shard's header, verified by its name.

    Raises FeatureError if it is damaged, StrangerError if it is another program's file, FileNotFoundError if it is gone.
    """

    def read() -> Shard:
        opened = place.peek(name)
        try:
            return _read_header(opened, trunk, name)
        finally:
            opened.close()

    return _past_copies(place, name, read)


def check_tap(place: ShardPlace, shard: Shard, tap: str) -> None:
    """Reads a tap of a shard once. Raises FeatureError if its checksum differs, FileNotFoundError if the shard is gone."""

    def check() -> None:
        opened = place.open(shard.name)
        try:
            _check_rows(opened, shard, tap)
        finally:
            opened.close()

    _past_copies(place, shard.name, check)


def audit(place: ShardPlace, trunk: str, name: str) -> None:
    """Reads every byte of a shard as it lies in its place; raises as `read_shard` and `check_tap` do."""
    opened = place.open_here(name)
    try:
        shard = _read_header(opened, trunk, name)
        for tap in shard.taps:
            _check_rows(opened, shard, tap)
    finally:
        opened.close()


def _past_copies(place: ShardPlace, name: str, read: Callable[[], R]) -> R:
    """The result of `read`, which is tried again without the place's copy if that was damaged."""
    try:
        return read()
    except FeatureError:
        if not place.forget(name):
            raise
    return read()


def _read_header(opened: Readable, trunk: str, name: str) -> Shard:
    length = _read(opened, 0, 8)
    num_bytes = int.from_bytes(length, "little")
    if num_bytes > min(opened.num_bytes - 8, MAX_HEADER_BYTES):
        raise FeatureError(f"{name}: its header is cut short")
    header = _read(opened, 8, num_bytes)
    if _name_of(length + header) != name:
        if _is_a_strangers(header):
            raise StrangerError(f"{name}: another program wrote it")
        raise FeatureError(f"{name}: its header is not what was written")
    shard = _parse(name, 8 + num_bytes, json.loads(header), trunk)
    if shard.num_bytes != opened.num_bytes:
        raise FeatureError(f"{name}: it has {opened.num_bytes} bytes and was written with {shard.num_bytes}")
    return shard


def _is_a_strangers(header: bytes) -> bool:
    """Whether a header that does not fit its name is another program's whole one, rather than a damaged one of ours."""
    # Ours has both of these words as JSON within JSON, hence escaped; damage seldom hits both.
    if any(rf"\"{fact}\"".encode() in header for fact in ("crc32", "trunk")):
        return False
    try:
        return isinstance(json.loads(header), dict)
    except ValueError:
        return False


def _check_rows(opened: Opened, shard: Shard, tap: str) -> None:
    block = shard.taps[tap]
    left, offset, crc32 = block.layout.num_bytes * len(shard.keys), block.offset, 0
    buffer = memoryview(bytearray(min(left, CHUNK_BYTES)))
    while left:
        chunk = buffer[: min(left, CHUNK_BYTES)]
        if not opened.read_into(chunk, offset):
            raise FeatureError(f"{shard.name}: it is cut short")
        crc32 = zlib.crc32(chunk, crc32)
        left, offset = left - len(chunk), offset + len(chunk)
    if crc32 != block.crc32:
        raise FeatureError(f"{shard.name}: tap {tap!r} is not what was written")


def _parse(name: str, data_start: int, header: Mapping[str, Any], trunk: str) -> Shard:
    facts = json.loads(header["__metadata__"]["shard"])
    if facts["trunk"] != trunk:
        raise FeatureError(f"{name}: it belongs to trunk {facts['trunk']}, not to {trunk}")
    taps = {}
    for tap, crc32 in facts["crc32"].items():
        described = header[tap]
        layout = Layout(tuple(described["shape"][1:]), DTYPES[described["dtype"]])
        taps[tap] = Block(layout, data_start + described["data_offsets"][0], crc32)
    keys = np.frombuffer(base64.b64decode(facts["keys"]), PACKED)
    num_bytes = data_start + len(keys) * sum(block.layout.num_bytes for block in taps.values())
    return Shard(name, num_bytes, keys, taps)


def _read(opened: Readable, offset: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    if not opened.read_into(memoryview(buffer), offset):
        raise FeatureError("it is cut short")
    return bytes(buffer)


def _name_of(header: bytes | memoryview) -> str:
    return hashlib.blake2b(header, digest_size=16).hexdigest() + SUFFIX
