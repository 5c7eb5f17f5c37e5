"""The texts that a person asks predictions for: given as they are, files, the `.txt` of folders, and a column of a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows import folders
from flows.errors import AskedWrongly
from flows.stages.predicting.asked_images import Unread, column_of

TEXT_COLUMN, ENDING = "text", ".txt"


@dataclass(frozen=True)
class AskedText:
    """A text, by its letters or its file, and the name that its answer gets; `is_named` if a person named it by itself."""

    name: str
    content: str | Path
    is_named: bool


@dataclass(frozen=True)
class AskedTexts:
    """The texts in order, and between them lines of a CSV that hold none; warnings."""

    found: tuple[AskedText | Unread, ...]
    warnings: tuple[str, ...]


def find_texts(texts: Sequence[str], files: Sequence[Path], column: str | None) -> AskedTexts:
    """The texts given, then those of files, of the `.txt` in folders, and of CSV files in their `column`.

    The column is `text` if it is left out, or the only one. Raises AskedWrongly if one of `files` holds no text.
    """
    found: list[AskedText | Unread] = [AskedText(text, text, True) for text in texts]
    warnings: list[str] = []
    for file in files:
        if file.is_dir():
            of_folder, told = _of_folder(file)
            found += of_folder
            warnings += told
        elif file.suffix.lower() == ".csv":
            found += _of_csv(file, column)
        else:
            found.append(AskedText(str(file), file, True))
    return AskedTexts(tuple(found), tuple(warnings))


def _of_folder(folder: Path) -> tuple[list[AskedText], list[str]]:
    inside = folders.contents(folder)
    texts = [path for path in inside.files if path.suffix.lower() == ENDING]
    if not texts:
        raise AskedWrongly(f"{folder} holds no text ({ENDING})")
    left_out = folders.describe_left_out([path for path in inside.files if path not in texts], inside.passed)
    told = [f"{folder}: no texts, and passed over: {left_out}"] if left_out else []
    return [AskedText(str(folder / path), folder / path, False) for path in texts], told


def _of_csv(file: Path, column: str | None) -> list[AskedText | Unread]:
    """The texts in a CSV's column, and its lines that hold none, in order."""
    from flows.landing.tables import read_csv

    columns, lines = read_csv(file)
    names = [name.strip() for name in columns]
    place = column_of(file, names, column or TEXT_COLUMN if len(names) > 1 else column, "the texts")
    found: list[AskedText | Unread] = []
    for number, line in lines:
        name = f"{file} line {number}"
        if len(line) != len(columns):
            found.append(Unread(name, f"has {len(line)} cells for {len(columns)} columns"))
        else:
            found.append(AskedText(name, line[place], False))
    return found
