"""The images that a person asks predictions for: files, the images of folders, and those that a CSV names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flows import folders
from flows.errors import AskedWrongly
from flows.stages.predicting.asked import Asked, AskedSample, Unread, find_asked, read_column

FILE_COLUMN = "file"


def find_images(files: Sequence[Path], output: Path | None, column: str | None) -> Asked:
    """The images of files, folders and CSV files, with a warning about the files passed over in a folder.

    Images below the folder `output`, where masks are written to, are left out. A CSV's paths, in its `column`, are relative to
    its folder. Raises AskedWrongly if one of `files` names no image.
    """
    return find_asked(files, partial(_of_folder, output=output), partial(_of_csv, column=column))


def _of_folder(folder: Path, output: Path | None) -> tuple[list[Path], list[str]]:
    inside = folders.contents(folder)
    written = output is not None and output.resolve() != folder.resolve()
    images = [path for path in inside.images if not (written and output and _lies_in(folder / path, output))]
    if not images:
        raise AskedWrongly(f"{folder} holds no image ({', '.join(folders.image_endings())})")
    others = [path for path in inside.files if not folders.is_image(path.name)]
    left_out = folders.describe_left_out(others, inside.passed)
    return [folder / path for path in images], [f"{folder}: no images, and passed over: {left_out}"] if left_out else []


def _of_csv(file: Path, column: str | None) -> list[AskedSample | Unread]:
    named, cells = read_column(file, column, FILE_COLUMN, "the paths")
    return [_of_cell(file.parent, named, name, cell) for name, cell in cells]


def _of_cell(folder: Path, column: str, line: str, cell: str | Unread) -> AskedSample | Unread:
    if isinstance(cell, Unread):
        return cell
    path = cell.strip()
    if not path or "\0" in path:
        return Unread(line, f"names no file in the column {column!r}")
    return AskedSample(str(folder / path), folder / path, False)


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
