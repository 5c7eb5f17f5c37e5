"""The recipe by which an image's pixels are read: a number that marks files which an earlier version read differently.

1: read as ever. 2: read wrongly at first: a TIFF with an orientation was turned twice; of a PNG whose transparent value has
more or fewer than 8 bits, hidden values were seen; the values of a mask of greys of few bits were scaled. 3, for masks alone:
drawn on the pixels of the image as they are stored, and turned with them.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from heads.data.decoding import UPRIGHT, opened, orientation_of, sizes_of
from heads.data.mask_values import value_step

FIRST, MENDED, AS_STORED = 1, 2, 3
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _COLOURS = 0, 2


def image_recipe(source: Path | bytes) -> int:
    """The recipe by which an image is read: 1, or 2 if its pixels were first read wrongly."""
    head = _head(source)
    if head.startswith(_TIFF):
        return MENDED if _orientation(source) in UPRIGHT else FIRST
    if head.startswith(_PNG):
        depth, kind = head[24], head[25]
        if (kind == _GREY and depth in (2, 4, 16)) or (kind == _COLOURS and depth == 16):
            return MENDED if _has_other_transparency(source, depth) else FIRST
    return FIRST


def mask_recipe(source: Path | bytes, image: Path | bytes | None = None) -> int:
    """The recipe by which a mask is read, 1 or 2, beside its `image` if that is given."""
    head = _head(source)
    if head.startswith(_TIFF) and _orientation(source) in UPRIGHT:
        return MENDED
    few_bits = head.startswith(_PNG) and head[24] in (2, 4) and head[25] == _GREY
    if few_bits or (head.startswith((*_TIFF, b"P2", b"P5", b"\x59\xa6\x6a\x95")) and _is_scaled(source)):
        return MENDED
    # Beside such an image, masks were compared with the wrong size.
    return MENDED if image is not None and _head(image).startswith(_TIFF) and _orientation(image) in UPRIGHT else FIRST


def drawn_on(mask: Path | bytes, image: Path | bytes) -> str | None:
    """Whether a mask is drawn on its image as 'stored' or 'upright'; 'unknown' if the image's size is the same both ways.

    None if it makes no difference: the image is stored upright, or the mask has a turn of its own. Raises ImageError if one of
    them cannot be opened.
    """
    with opened(image, "its image") as file:
        stored, upright, orientation = sizes_of(file)
    if orientation not in UPRIGHT:
        return None
    with opened(mask, "its mask") as file:
        size, _, own = sizes_of(file)
    if own in UPRIGHT:
        return None
    if stored == upright:
        return "unknown"
    return "stored" if size == stored else "upright"


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:33].ljust(33, b"\0")
    with source.open("rb") as file:
        return file.read(33).ljust(33, b"\0")


def _orientation(source: Path | bytes) -> int | None:
    try:
        with opened(source, None) as image:
            return orientation_of(image)
    except ValueError:
        return None


def _is_scaled(source: Path | bytes) -> bool:
    try:
        with opened(source, None) as image:
            return value_step(image) != 1
    except ValueError:
        return False


def _has_other_transparency(source: Path | bytes, depth: int) -> bool:
    """Whether a PNG's transparent value is not the one that Pillow compares pixels of 8 bits with."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=["PNG"]) as image:
            transparent = image.info.get("transparency")
    except Exception:  # What does not open is refused when it is decoded.
        return False
    if isinstance(transparent, tuple):
        # Of 16-bit colours Pillow compares the lower byte in place of the upper one.
        return any(value >> 8 != value & 0xFF for value in transparent)
    return transparent is not None and (depth == 16 or transparent != 0)
