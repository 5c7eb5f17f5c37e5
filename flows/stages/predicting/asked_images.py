"""The images that a person asks predictions for: files, the images of folders, and those that a CSV names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows import folders
from flows.errors import AskedWrongly

FILE_COLUMN = "file"


@dataclass(frozen=True)
class Unread:
    """An image or a text of a folder or a CSV that cannot be read, or a line that names none, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class AskedImages:
    """The images in order, and between them lines that name none: each file, and whether it was named itself (True) or only its
    folder or CSV was."""

    found: tuple[tuple[Path, bool] | Unread, ...]
    warnings: tuple[str, ...]

    @property
    def files(self) -> list[tuple[Path, bool]]:
        """The images alone."""
        return [each for each in self.found if not isinstance(each, Unread)]


def find_images(files: Sequence[Path], output: Path | None, column: str | None) -> AskedImages:
    """The images of files, folders and CSV files, with a warning about the files passed over in a folder.

    Images below the folder `output`, where masks are written to, are left out. A CSV's paths, in its `column`, are relative to
    its folder. Raises AskedWrongly if one of `files` names no image.
    """
    found: list[tuple[Path, bool] | Unread] = []
    warnings: list[str] = []
    for file in files:
        if file.is_dir():
            images, told = _of_folder(file, output)
            found += [(image, False) for image in images]
            warnings += told
        elif file.suffix.lower() == ".csv":
            found += _of_csv(file, column)
        else:
            found.append((file, True))
    return AskedImages(tuple(found), tuple(warnings))


def _of_folder(folder: Path, output: Path | None) -> tuple[list[Path], list[str]]:
    inside = folders.contents(folder)
    written = output is not None and output.resolve() != folder.resolve()
    images = [path for path in inside.images if not (written and output and _lies_in(folder / path, output))]
    if not images:
        raise AskedWrongly(f"{folder} holds no image ({', '.join(folders.image_endings())})")
    others = [path for path in inside.files if not folders.is_image(path.name)]
    left_out = folders.describe_left_out(others, inside.passed)
    return [folder / path for path in images], [f"{folder}: no images, and passed over: {left_out}"] if left_out else []


def _of_csv(file: Path, column: str | None) -> list[tuple[Path, bool] | Unread]:
    """The images that a CSV names, and its lines that name none, in order."""
    from flows.landing.tables import read_csv

    columns, lines = read_csv(file)
    names = [name.strip() for name in columns]
    place = column_of(file, names, column, "the paths")
    found: list[tuple[Path, bool] | Unread] = []
    for number, line in lines:
        cell = line[place].strip() if len(line) == len(columns) else ""
        if len(line) != len(columns):
            found.append(Unread(f"{file} line {number}", f"has {len(line)} cells for {len(columns)} columns"))
        elif not cell or "\0" in cell:
            found.append(Unread(f"{file} line {number}", f"names no file in the column {names[place]!r}"))
        else:
            found.append((file.parent / cell, False))
    return found


def column_of(file: Path, names: Sequence[str], asked: str | None, what: str) -> int:
    """The place of the column that is asked for, else of `file` or the only one. Raises AskedWrongly if it is not there once."""
    wanted = asked or (names[0] if len(names) == 1 else FILE_COLUMN)
    if names.count(wanted) != 1:
        count = "twice" if wanted in names else "not"
        raise AskedWrongly(f"{file} has the column {wanted!r} {count}; name that of {what} with --column: {', '.join(names)}")
    return names.index(wanted)


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
