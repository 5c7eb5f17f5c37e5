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
class ImageFile:
    """A file of an image or of a mask: its name in the data folder, and its bytes or its path in the source."""

    file: str
    content: Path | bytes

    def read(self) -> bytes:
        """The bytes. Raises OSError if the file cannot be read, or is a pipe or a device, whose reading might never end."""
        if isinstance(self.content, Path) and self.content.exists() and not self.content.is_file():
            raise OSError("it is no regular file")
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def decode(self, content: bytes) -> int:
        """The recipe by which the content is read, which is decoded. Raises ImageError if it does not decode."""
        # By the same function as in training, so that what passes here does not fail there.
        decode(content, "image")
        return self.recipe(content)

    def recipe(self, content: bytes) -> int:
        """The recipe by which the content is read."""
        return image_recipe(content)


@dataclass(frozen=True)
class TextFile(ImageFile):
    """A text: its name in the data folder, and its letters or its path in the source."""

    def read(self) -> bytes:
        """The text as it is kept: in UTF-8, composed, with plain newlines. Raises OSError or TextError if it cannot be read."""
        if isinstance(self.content, bytes):
            return self.content
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

    content: ImageFile
    labels: Mapping[str, str | None]
    masks: Mapping[str, ImageFile | None] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    fault: str | None = None

    @property
    def file(self) -> str:
        """Its name in the data folder."""
        return self.content.file


@dataclass(frozen=True)
class Listing:
    """All entries of a source, and warnings about what is left out.

    `empty` are the folders in which nothing lies, and the links that lead nowhere.
    """

    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()
    empty: tuple[PurePosixPath, ...] = ()


def image_file(root: Path, file: PurePosixPath, kind: str) -> ImageFile:
    """A file of the source that is kept under `kind` (`images/` or `masks/`) by its path; a path's own `kind` is not repeated."""
    return ImageFile(kind + file.as_posix().removeprefix(kind), root / file)
