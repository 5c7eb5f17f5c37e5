"""The built-in source: scikit-learn's 1,797 handwritten digits as 8x8 grayscale bitmaps, byte for byte the same everywhere."""

from __future__ import annotations

import gzip
import struct
from importlib.util import find_spec
from pathlib import Path

from flows.errors import AskedWrongly
from flows.landing.entries import LABEL, Entry, Listing, SourceFile
from flows.manifest import IMAGES

SIDE_PX = 8
_MAX_VALUE = 16


def digits() -> Listing:
    """The listing of the digits, without splits. Raises AskedWrongly if scikit-learn is not installed."""
    rows = [[int(float(cell)) for cell in line.split(",")] for line in _table().split()]
    return Listing(tuple(_entry(index, row[:-1], row[-1]) for index, row in enumerate(rows)))


def _table() -> str:
    # Read as a file: importing scikit-learn costs ten seconds on a cold machine.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise AskedWrongly("source 'digits' needs scikit-learn, which is not installed: pip install 'headstart[flows]'")
    return gzip.decompress((Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()).decode()


def _entry(index: int, values: list[int], digit: int) -> Entry:
    levels = bytes((value * 255 + _MAX_VALUE // 2) // _MAX_VALUE for value in values)
    return Entry(SourceFile(f"{IMAGES}{digit}/{index:04d}.bmp", bitmap(levels, SIDE_PX)), {LABEL: str(digit)})


def bitmap(levels: bytes, side_px: int) -> bytes:
    """A square 8-bit grayscale BMP of `levels`, given row by row from the top; `side_px` is a multiple of 4."""
    palette = b"".join(struct.pack("<4B", level, level, level, 0) for level in range(256))
    offset = 14 + 40 + len(palette)
    rows = [levels[start : start + side_px] for start in range(0, len(levels), side_px)]
    header = struct.pack("<2sIHHI", b"BM", offset + len(levels), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 0, len(levels), 2835, 2835, 256, 0)
    return header + info + palette + b"".join(reversed(rows))
