"""The mask files of a target, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MaskFile:
    """A mask's file, how many pixels have each value, and whether it is drawn on its image as that is stored."""

    path: Path
    pixels: Mapping[int, int]
    as_stored: bool


# From a cell of a table to the mask that it names.
OpenMask = Callable[[str], MaskFile]


@dataclass(frozen=True)
class Masks:
    """A target's mask files, None where a sample has none, and the class number of each value in them.

    Values without a number count for nothing. `num_pixels` are the pixels of each class in all of the files. `as_stored` tells
    of each whether it is drawn on its image as that is stored; left out, none is but where sizes show it.
    """

    paths: Sequence[Path | None]
    numbers: Mapping[int, int]
    num_pixels: Sequence[int] = ()
    as_stored: Sequence[bool] = ()
