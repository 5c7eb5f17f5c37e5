"""The mask files of a target, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A file, its bytes, or a function that gives either when it is read.
Source = Path | bytes | Callable[[], Path | bytes]


@dataclass(frozen=True)
class MaskFile:
    """A mask's source, the number of pixels of each value, and whether it is drawn on its image as stored, before any turn."""

    path: Source
    pixels: Mapping[int, int]
    as_stored: bool


# Opens the mask that a cell of a table names.
OpenMask = Callable[[str], MaskFile]


@dataclass(frozen=True)
class Masks:
    """A target's mask files, None for a sample without one, and the class number of each value in them.

    Values without a number count for nothing. `num_pixels` is the number of pixels of each class in all files. `as_stored` says
    of each mask whether it is drawn on its image as stored; left out, sizes decide.
    """

    paths: Sequence[Source | None]
    numbers: Mapping[int, int]
    num_pixels: Sequence[int] = ()
    as_stored: Sequence[bool] = ()

    def source(self, index: int) -> Path | bytes | None:
        """The mask's file or bytes, None for a sample without one."""
        path = self.paths[index]
        return path() if callable(path) else path
