"""What a source says of its images, whatever its layout: an entry each, with labels, masks and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

LABEL = "label"
MASK = "mask"


@dataclass(frozen=True)
class Picture:
    """An image file: its name in the data folder, and its bytes or where they are."""

    file: str
    content: Path | bytes

    def read(self) -> bytes:
        """The bytes. Raises OSError if the file cannot be read, or is a pipe or a device that would never end."""
        if isinstance(self.content, Path) and self.content.exists() and not self.content.is_file():
            raise OSError("it is no regular file")
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Entry:
    """One image of a source and what the source says of it; `fault` says why it cannot be used, None if it can."""

    image: Picture
    labels: Mapping[str, str | None]
    masks: Mapping[str, Picture | None] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """All entries of a source, and what a person should know about what is left out.

    `empty` are the folders in which nothing lies, and the links that lead nowhere.
    """

    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()
    empty: tuple[PurePosixPath, ...] = ()


def picture(root: Path, file: PurePosixPath, kind: str) -> Picture:
    """The picture kept under `images/` or `masks/` by its path in the source, that folder's own name not repeated."""
    return Picture(kind + file.as_posix().removeprefix(kind), root / file)
