"""The listing of a source, whatever its layout: an entry for each sample, with labels, masks and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from heads.data.decoding import decode
from heads.data.recipes import FIRST, image_recipe
from heads.data.text_preprocess import decode_text

LABEL = "label"
MASK = "mask"
TAGS = "tags"


@dataclass(frozen=True)
class SourceFile:
    """An image or a mask of a source: its name in the data folder, and where it comes from, a path in the source or bytes."""

    file: str
    origin: Path | bytes

    def read(self) -> bytes:
        """The bytes. Raises OSError if the file cannot be read, or is a pipe or a device, whose reading might never end."""
        if isinstance(self.origin, Path) and self.origin.exists() and not self.origin.is_file():
            raise OSError("it is no regular file")
        return self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes()

    def decode(self, content: bytes) -> int:
        """The recipe by which the content is read, which is decoded. Raises ImageError if it does not decode."""
        # By the same function as in training, so that what passes here does not fail there.
        decode(content, "image")
        return self.recipe(content)

    def recipe(self, content: bytes) -> int:
        """The recipe by which the content is read."""
        return image_recipe(content)


@dataclass(frozen=True)
class TextFile(SourceFile):
    """A text of a source, likewise."""

    def read(self) -> bytes:
        """The text as it is kept: in UTF-8, composed, with plain newlines. Raises OSError or TextError if it cannot be read."""
        if isinstance(self.origin, bytes):
            return self.origin
        return decode_text(super().read(), "text").encode()

    def decode(self, content: bytes) -> int:
        """The first recipe: a text has no other."""
        return FIRST

    def recipe(self, content: bytes) -> int:
        """The first recipe: a text has no other."""
        return FIRST


@dataclass(frozen=True)
class Entry:
    """An image or a text of a source, with what the source says of it; `fault` says why it cannot be used, None if it can."""

    source: SourceFile
    labels: Mapping[str, str | None]
    masks: Mapping[str, SourceFile | None] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    fault: str | None = None

    @property
    def file(self) -> str:
        """Its name in the data folder."""
        return self.source.file


@dataclass(frozen=True)
class Listing:
    """All entries of a source, and warnings about what is left out.

    `empty` are the folders in which nothing lies, and the links that lead nowhere.
    """

    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()
    empty: tuple[PurePosixPath, ...] = ()


def image_file(root: Path, file: PurePosixPath, kind: str) -> SourceFile:
    """A file of the source that is kept under `kind` (`images/` or `masks/`) by its path; a path's own `kind` is not repeated."""
    return SourceFile(kind + file.as_posix().removeprefix(kind), root / file)
