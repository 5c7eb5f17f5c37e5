"""Packs: many small objects in one beside a remote's own, named by content, with an index of them; neither ever changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDER = "packs/"
PACK, INDEX = ".pack", ".index"
_MARK = b"headstart pack index 1\n"
# The halves of a digest, where its bytes begin in the pack, and how many they are.
_ROW = np.dtype([("high", ">u8"), ("low", ">u8"), ("start", ">u8"), ("length", ">u4")])
# The table of a pack without objects.
EMPTY = np.empty(0, _ROW)


class Slot(NamedTuple):
    """Where an object lies in a pack."""

    pack: str
    start: int
    end: int


class Packs:
    """The packs of a remote, by their indexes."""

    def __init__(self, names: Sequence[str], tables: Sequence[NDArray[Any]]) -> None:
        self._tables = dict(zip(names, tables, strict=True))
        rows = np.concatenate([*tables, EMPTY])
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


def decode(content: bytes) -> NDArray[Any] | None:
    """The table in an index, None if it is none of this version."""
    rows = content[len(_MARK) :]
    return np.frombuffer(rows, _ROW) if content.startswith(_MARK) and len(rows) % _ROW.itemsize == 0 else None


def encode(rows: Sequence[tuple[str, int, int]]) -> bytes:
    """The index of a pack with these objects: the digest, start and end of each."""
    table = np.array([(int(d[:16], 16), int(d[16:], 16), start, length) for d, start, length in rows], dtype=_ROW)
    return _MARK + table.tobytes()
