"""Whether the values of a mask's pixels are classes: formats that change them, scales that hide them, shades between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# By Pillow's name, as people know them.
LOSSY = {
    "JPEG": "JPEG",
    "MPO": "JPEG",
    "AVIF": "AVIF",
    "HEIF": "HEIF",
    "JXL": "JPEG XL",
    "DDS": "DDS",
    "BLP": "BLP",
    "FTEX": "FTEX",
}
LOSSY_IN_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
# What Pillow multiplies greys of two and four bits by.
GREY_STEPS = {f"L;{bits}{order}": step for bits, step in ((2, 85), (4, 17)) for order in ("", "R", "I", "IR")}
# A value that is found less often than this is a shade if it looks like one: a class that is an edge and no more is large.
MAX_SHADE_SHARE = 0.05
# A mask that holds so many shades, and more of them than other values, is one of shades.
MIN_SHADES = 3
# Of a shade's pixels, so many lie between two other values or alone.
SHADE_PIXELS = 0.8


def lossy_format(image: Image.Image, source: Path | bytes) -> str | None:
    """The name of the lossy format that an opened picture is stored in; None where its values are those that were saved."""
    if image.format == "TIFF":
        return LOSSY_IN_TIFF.get(str(image.info.get("compression")))
    if image.format == "JPEG2000":
        return "lossy JPEG 2000" if _is_irreversible(source if isinstance(source, bytes) else Path(source).read_bytes()) else None
    return LOSSY.get(image.format or "")


def _is_irreversible(content: bytes) -> bool:
    """Whether a JPEG 2000 is stored by the wavelet 9-7, which rounds (ITU-T T.800, A.6.1), and not by 5-3."""
    place = content.find(b"\xff\x52", content.find(b"\xff\x4f\xff\x51"))
    return place >= 0 and content[place + 13 : place + 14] == b"\0"


def raw_mode(image: Image.Image) -> str:
    """How the pixels of an opened picture lie in its file, in Pillow's words; empty where nothing is told, or after loading."""
    arguments = _arguments(image)
    return str(arguments[0]) if arguments else ""


def value_step(image: Image.Image) -> float:
    """What the values of an opened picture are multiplied by when Pillow loads it: of greys of few bits, and in PGM files."""
    arguments = _arguments(image)
    if image.format == "PPM" and len(arguments) > 1 and image.mode in ("L", "I"):
        return (0xFFFF if image.mode == "I" else 0xFF) / int(arguments[1])
    return GREY_STEPS.get(raw_mode(image), 1)


def _arguments(image: Image.Image) -> tuple[Any, ...]:
    tile = next(iter(getattr(image, "tile", None) or ()), None)
    arguments = tile[3] if tile is not None else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def is_shaded(values: NDArray[np.int32]) -> bool:
    """Whether most values of a mask (H, W) look like shades: few pixels, that lie between two other values or each alone.

    So do the edges of a mask that was resized smoothly, or saved in a lossy format; regions of a class have an inside.
    """
    flat = values.reshape(-1)
    counts = np.bincount(flat)
    num_values = np.count_nonzero(counts)
    if num_values < MIN_SHADES + 2:
        return False
    odd = np.bincount(flat[_odd_pixels(values).reshape(-1)], minlength=len(counts))
    shades = (counts > 0) & (counts < MAX_SHADE_SHARE * values.size) & (odd >= SHADE_PIXELS * counts)
    return bool(shades.sum() >= max(MIN_SHADES, num_values / 2))


def _odd_pixels(values: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which pixels (H, W) lie strictly between their two neighbours of a row or a column, or have no equal neighbour."""
    wide = np.pad(values, 1, mode="edge")
    across, down = (wide[1:-1, :-2], wide[1:-1, 2:]), (wide[:-2, 1:-1], wide[2:, 1:-1])
    between: NDArray[np.bool_] = np.zeros(values.shape, np.bool_)
    for one, other in (across, down):
        between |= ((one < values) & (values < other)) | ((other < values) & (values < one))
    inner = np.pad(values, 1, mode="constant", constant_values=-1)
    neighbours = (inner[1:-1, :-2], inner[1:-1, 2:], inner[:-2, 1:-1], inner[2:, 1:-1])
    alone: NDArray[np.bool_] = ~np.logical_or.reduce([neighbour == values for neighbour in neighbours])
    return np.logical_or(between, alone)
