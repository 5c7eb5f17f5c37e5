"""Packs: many small objects in one of about 64 MB beside a remote's own, named by content, with an index; never changed."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.files import write_whole
from flows.objects.reading import Reader

LOG = logging.getLogger(__name__)
FOLDER = "packs/"
PACK, INDEX = ".pack", ".index"
PACK_BYTES = 64 * 2**20
# Larger objects take a request of their own without loss.
SMALL_BYTES = 256 * 2**10
# With fewer new ones a pack is not worth its request: they wait for the next night's.
MIN_OBJECTS = 64
_MARK = b"headstart pack index 1\n"
# The halves of a digest, where its bytes begin in the pack, and how many they are.
_ROW = np.dtype([("high", ">u8"), ("low", ">u8"), ("start", ">u8"), ("length", ">u4")])


class Slot(NamedTuple):
    """Where an object lies in a pack."""

    pack: str
    start: int
    end: int


class Packs:
    """The packs of a remote, by their indexes."""

    def __init__(self, names: Sequence[str], tables: Sequence[NDArray[Any]]) -> None:
        self._tables = dict(zip(names, tables, strict=True))
        rows = np.concatenate([*tables, np.empty(0, _ROW)])
        order = np.argsort(rows["high"], kind="stable")
        # Of all packs, sorted by digest.
        self._rows, self._highs = rows[order], rows["high"][order].astype(np.uint64)
        self._packs = np.repeat(np.array(names, dtype=object), [len(table) for table in tables])[order]

    def find(self, digests: Sequence[str]) -> list[Slot | None]:
        """Where each of these objects lies, None if in no pack."""
        wanted = np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)
        places = np.searchsorted(self._highs, wanted)
        return [self._slot(int(place), digest) for place, digest in zip(places, digests, strict=True)]

    def _slot(self, place: int, digest: str) -> Slot | None:
        high, low = int(digest[:16], 16), int(digest[16:], 16)
        while place < len(self._rows) and int(self._rows[place]["high"]) == high:
            row = self._rows[place]
            if int(row["low"]) == low:
                return Slot(self._packs[place], int(row["start"]), int(row["start"]) + int(row["length"]))
            place += 1
        return None

    def content(self, name: str) -> list[tuple[str, int, int]]:
        """The digest, start and end of each object of a pack, in its order."""
        table = self._tables[name]
        columns = (table[column].tolist() for column in ("high", "low", "start", "length"))
        return [(f"{high:016x}{low:016x}", start, start + length) for high, low, start, length in zip(*columns, strict=True)]


def read_packs(reader: Reader, copies: Path) -> Packs:
    """The packs of the reader's remote; their indexes are kept in a folder for the next time."""
    own = copies / hashlib.sha256(f"{reader.remote.endpoint} {reader.remote.address}".encode()).hexdigest()[:16]
    names = sorted(name.removesuffix(INDEX) for name in reader.names(FOLDER) if name.endswith(INDEX))
    return Packs(names, [_read_index(reader, name, own / f"{name}{INDEX}") for name in names])


def _read_index(reader: Reader, name: str, copy: Path) -> NDArray[Any]:
    if copy.is_file() and (table := _decode(copy.read_bytes())) is not None:
        return table
    content = reader.read(f"{FOLDER}{name}{INDEX}")
    table = _decode(content)
    if table is None:
        LOG.warning("%s/%s%s%s is no index of this version; its pack is left aside", reader.remote.address, FOLDER, name, INDEX)
        return np.empty(0, _ROW)
    try:
        write_whole(copy, content)
    except OSError:
        copy.unlink(missing_ok=True)
    return table


def _decode(content: bytes) -> NDArray[Any] | None:
    rows = content[len(_MARK) :]
    return np.frombuffer(rows, _ROW) if content.startswith(_MARK) and len(rows) % _ROW.itemsize == 0 else None


def _encode(rows: Sequence[tuple[str, int, int]]) -> bytes:
    table = np.array([(int(d[:16], 16), int(d[16:], 16), start, length) for d, start, length in rows], dtype=_ROW)
    return _MARK + table.tobytes()


def write_packs(reader: Reader, copies: Path, files: Mapping[str, Path]) -> int:
    """Pack those of the files by digest that are small and in no pack yet, in this order; gives how many packs were written.

    A kill leaves at most a pack without its index, which nobody reads.
    """
    known = read_packs(reader, copies).find(list(files))
    new = [(digest, path) for (digest, path), slot in zip(files.items(), known, strict=True) if slot is None]
    small = [(digest, path) for digest, path in new if path.stat().st_size < SMALL_BYTES]
    if len(small) < MIN_OBJECTS:
        return 0
    number = 0
    for rows, content in _filled(small):
        name = hashlib.md5(content, usedforsecurity=False).hexdigest()
        reader.write(f"{FOLDER}{name}{PACK}", content)
        reader.write(f"{FOLDER}{name}{INDEX}", _encode(rows))
        number += 1
    return number


def _filled(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[list[tuple[str, int, int]], bytes]]:
    """The rows and the bytes of pack after pack."""
    rows, pack = list[tuple[str, int, int]](), io.BytesIO()
    for digest, path in files:
        content = path.read_bytes()
        rows.append((digest, pack.tell(), len(content)))
        pack.write(content)
        if pack.tell() >= PACK_BYTES:
            yield rows, pack.getvalue()
            rows, pack = [], io.BytesIO()
    if rows:
        yield rows, pack.getvalue()
