"""The pointer: a small JSON file that says which bundle is published, and which files it has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.errors import AskedWrongly

POINTER = "published.json"
FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Stored:
    """A file of a bundle: its sha256 as hex digits, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Pointer:
    """The published version of a model: its bundle's digest, which names the folder of its files, and when it was published.

    `earlier` are the digests of the bundles that were published there before, the latest first; earlier Headstarts wrote none.
    """

    format: int
    name: str
    version: str
    digest: str
    files: Mapping[str, Stored]
    created: str
    earlier: tuple[str, ...] = ()


def read_pointer(content: bytes, where: str) -> Pointer:
    """The pointer in a file's content. Raises AskedWrongly, naming `where` it lies, if Headstart did not write it."""
    from heads import bundle as bundles

    try:
        stated: Any = json.loads(content)
        if stated["format"] != FORMAT:
            raise AskedWrongly(
                f"{where} has format {stated['format']!r:.50}, and this version of Headstart reads {FORMAT}; update it"
            )
        files = {name: Stored(_digest(file["sha256"]), _size(file["size"])) for name, file in stated["files"].items()}
        if bundles.SUMS not in files or not bundles.are_files(files.keys() - {bundles.SUMS}):
            raise ValueError("its files are not those of a bundle")
        name, version, created = (str(stated[field])[:200] for field in ("name", "version", "created"))
        earlier = tuple(map(_digest, stated.get("earlier", ())))
        return Pointer(FORMAT, name, version, _digest(stated["digest"]), files, created, earlier)
    except AskedWrongly:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AskedWrongly(f"{where} is no pointer that Headstart wrote ({type(error).__name__}: {error!s:.200})") from None


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("a digest is 64 hex digits")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size is a number of bytes")
    return value
