"""Reading a stored file: a small one whole, a large one from where its copy ends."""

from __future__ import annotations

from typing import Any

from flows.errors import AskedWrongly
from flows.pulling import BLOCK_BYTES

# A pointer has under 8 kB, a SHA256SUMS under 1 kB, a list of signed addresses under 20 kB.
MAX_SMALL_BYTES = 65536


def small(file: Any, where: str) -> bytes:
    """The content of an open file. Raises AskedWrongly, naming `where` it lies, if it is longer than 64 kB."""
    content: bytes = file.read(MAX_SMALL_BYTES + 1)
    if len(content) > MAX_SMALL_BYTES:
        raise AskedWrongly(f"{where} is longer than {MAX_SMALL_BYTES} bytes, and no file that Headstart wrote there")
    return content


def append(source: Any, copy: Any, size: int) -> None:
    """Copy until the copy has `size` bytes or the source ends."""
    while (left := size - copy.tell()) > 0 and (block := source.read(min(BLOCK_BYTES, left))):
        copy.write(block)
