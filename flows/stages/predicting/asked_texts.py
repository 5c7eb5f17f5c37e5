"""The texts that a person asks predictions for: given as they are, files, the `.txt` of folders, and a column of a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flows import folders
from flows.errors import AskedWrongly
from flows.stages.predicting.asked import Asked, AskedSample, Unread, find_asked, read_column

TEXT_COLUMN, ENDING = "text", ".txt"


def find_texts(texts: Sequence[str], files: Sequence[Path], column: str | None) -> Asked:
    """The texts given, then those of files, of the `.txt` in folders, and of CSV files in their `column`.

    The column is `text` if it is left out, or the only one. Raises AskedWrongly if one of `files` holds no text.
    """
    asked = find_asked(files, _of_folder, partial(_of_csv, column=column))
    return Asked((*(AskedSample(text, text, True) for text in texts), *asked.found), asked.warnings)


def _of_folder(folder: Path) -> tuple[list[Path], list[str]]:
    inside = folders.contents(folder)
    texts = [path for path in inside.files if path.suffix.lower() == ENDING]
    if not texts:
        raise AskedWrongly(f"{folder} holds no text ({ENDING})")
    left_out = folders.describe_left_out([path for path in inside.files if path not in texts], inside.passed)
    return [folder / path for path in texts], [f"{folder}: no texts, and passed over: {left_out}"] if left_out else []


def _of_csv(file: Path, column: str | None) -> list[AskedSample | Unread]:
    _, cells = read_column(file, column, TEXT_COLUMN, "the texts")
    return [cell if isinstance(cell, Unread) else AskedSample(line, cell, False) for line, cell in cells]
