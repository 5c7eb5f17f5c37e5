"""The packs beside a remote's objects, read and written."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from flows.files import write_whole
from flows.objects.packs import EMPTY, FOLDER, INDEX, PACK, Packs, decode, encode
from flows.objects.reading import Reader

LOG = logging.getLogger(__name__)
# Of a pack, about.
PACK_BYTES = 64 * 2**20
# Larger objects take a request of their own without loss.
SMALL_BYTES = 256 * 2**10
# With fewer new ones a pack is not worth its request: they wait for the next night's.
MIN_OBJECTS = 64
# A pack's index follows it within minutes, or never.
LEFT_SECONDS = 86400.0


def read_packs(reader: Reader, copies: Path) -> Packs:
    """The packs of the reader's remote; their indexes are kept in a folder for the next time."""
    own = copies / hashlib.sha256(f"{reader.remote.endpoint} {reader.remote.address}".encode()).hexdigest()[:16]
    names = sorted(name.removesuffix(INDEX) for name in reader.names(FOLDER) if name.endswith(INDEX))
    return Packs(names, [_read_index(reader, name, own / f"{name}{INDEX}") for name in names])


def _read_index(reader: Reader, name: str, copy: Path) -> NDArray[Any]:
    if copy.is_file() and (table := decode(copy.read_bytes())) is not None:
        return table
    content = reader.read(f"{FOLDER}{name}{INDEX}")
    table = decode(content)
    if table is None:
        LOG.warning("%s/%s%s%s is no index of this version; its pack is left aside", reader.remote.address, FOLDER, name, INDEX)
        return EMPTY
    try:
        write_whole(copy, content)
    except OSError:
        copy.unlink(missing_ok=True)
    return table


def write_packs(reader: Reader, copies: Path, files: Mapping[str, Path]) -> int:
    """Pack those of the files by digest that are small and in no pack yet, in this order; gives how many packs were written.

    A kill leaves at most a pack without its index, which nobody reads, and which a later call removes.
    """
    _remove_left(reader)
    known = read_packs(reader, copies).find(list(files))
    new = [(digest, path) for (digest, path), slot in zip(files.items(), known, strict=True) if slot is None]
    small = [(digest, path) for digest, path in new if path.stat().st_size < SMALL_BYTES]
    if len(small) < MIN_OBJECTS:
        return 0
    number = 0
    for rows, content in _filled(small):
        name = hashlib.md5(content, usedforsecurity=False).hexdigest()
        reader.write(f"{FOLDER}{name}{PACK}", content)
        reader.write(f"{FOLDER}{name}{INDEX}", encode(rows))
        number += 1
    return number


def _remove_left(reader: Reader) -> None:
    """Remove the packs without an index, but for those of which another writer may write it yet."""
    listed = dict(reader.listed(FOLDER))
    for name, written_at in listed.items():
        is_left = name.endswith(PACK) and f"{name.removesuffix(PACK)}{INDEX}" not in listed
        if is_left and time.time() - written_at > LEFT_SECONDS:
            reader.remove(f"{FOLDER}{name}")


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
