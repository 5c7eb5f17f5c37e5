"""Whether the values of a mask's pixels are classes: formats that change them, scales that hide them, shades between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The names that people know, by Pillow's.
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
# The factors by which Pillow multiplies greys of two and four bits.
GREY_STEPS = {f"L;{bits}{order}": step for bits, step in ((2, 85), (4, 17)) for order in ("", "R", "I", "IR")}
# Only a value with a smaller share of the pixels can be a shade: a class that consists of edges alone has a larger one.
MAX_SHADE_SHARE = 0.05
# A mask is shaded if it has at least this many shades, and at least as many shades as other values.
MIN_SHADES = 3
# The least share of a shade's pixels that lie between two other values, or alone.
SHADE_PIXELS = 0.8


def lossy_format(image: Image.Image, source: Path | bytes) -> str | None:
    """The name of the lossy format that an opened image is stored in; None if its values are those that were saved."""
    if image.format == "TIFF":
        return LOSSY_IN_TIFF.get(str(image.info.get("compression")))
    if image.format == "JPEG2000":
        return "lossy JPEG 2000" if _is_irreversible(source if isinstance(source, bytes) else Path(source).read_bytes()) else None
    return LOSSY.get(image.format or "")


def _is_irreversible(content: bytes) -> bool:
    """Whether a JPEG 2000 file uses the 9-7 wavelet, which rounds, and not the 5-3 one (ITU-T T.800, A.6.1)."""
    place = content.find(b"\xff\x52", content.find(b"\xff\x4f\xff\x51"))
    return place >= 0 and content[place + 13 : place + 14] == b"\0"


def raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode of an opened image, its pixel format in the file; empty if there is none, or after loading."""
    arguments = _arguments(image)
    return str(arguments[0]) if arguments else ""


def value_step(image: Image.Image) -> float:
    """The factor by which Pillow multiplies an opened image's values on loading: 1 but for greys of few bits and in PGM files."""
    arguments = _arguments(image)
    if image.format == "PPM" and len(arguments) > 1 and image.mode in ("L", "I"):
        return (0xFFFF if image.mode == "I" else 0xFF) / int(arguments[1])
    return GREY_STEPS.get(raw_mode(image), 1)


def _arguments(image: Image.Image) -> tuple[Any, ...]:
    tile = next(iter(getattr(image, "tile", None) or ()), None)
    arguments = tile[3] if tile is not None else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def is_shaded(values: NDArray[np.int32]) -> bool:
    """Whether most values of a mask (H, W) look like shades: of few pixels, which lie between two other values or alone.

    Such values come at edges when a mask is resized smoothly or saved in a lossy format; regions of a class have an inside.
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
