"""The layouts of texts: a table with a column of them, and folders of `.txt` files, each a class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from flows.landing.class_folder_checks import refuse_splits
from flows.landing.entries import LABEL, Entry, TextFile
from flows.landing.given_splits import in_split_folders
from flows.landing.tables import TEXT, Table, composed
from flows.manifest import TEXTS
from heads.data.text_preprocess import compose
from heads.data.wordpiece import split_words
from heads.errors import TextError
from heads.tasks.bio import find_fault, is_cell, read_cell

ENDING = ".txt"


def table_entries(table: Table, split_value: Callable[[str | None], str | None]) -> tuple[Entry, ...]:
    """An entry for every line of a table of texts. A text is kept in a file named after its md5, its repetitions numbered."""
    seen: Counter[str] = Counter()
    entries = []
    for row in table.rows:
        try:
            text = compose(row.file)
            content, faults = text.encode(), [fault_of_tags(text, cell) for cell in row.cells.values() if cell and is_cell(cell)]
            fault = next(filter(None, faults), None)
            name = row.place if fault else numbered_name(content, seen)
        except (TextError, UnicodeEncodeError) as error:
            content, name = b"", row.place
            fault = str(error).removeprefix("text: ") if isinstance(error, TextError) else "is no text in UTF-8"
        labels = dict(row.cells)
        entries.append(Entry(TextFile(f"{TEXTS}{name}{ENDING}", content), labels, {}, split_value(row.split), row.group, fault))
    return tuple(entries)


def numbered_name(content: bytes, seen: Counter[str]) -> str:
    """The md5 of a text, with its number if it was `seen` before."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    seen[digest] += 1
    return digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def fault_of_tags(text: str, cell: str) -> str | None:
    """What keeps a cell of tags from being the tags of a text's words, in words; None if it is that."""
    tags, words = read_cell(cell), split_words(text)
    if len(words) != len(tags):
        return f"has {len(words)} words, as white space parts them, and {len(tags)} tags; give each word one tag"
    return find_fault(tags)


def folder_entries(root: Path, files: Sequence[PurePosixPath]) -> list[Entry]:
    """An entry for every text in a class folder, or in one within a split: `<class>/*.txt`, `{train,val,test}/<class>/*.txt`."""
    texts = [file for file in files if file.suffix.lower() == ENDING]
    # In folders of splits, other folders hold no classes.
    found: dict[PurePosixPath, str | None] = {**in_split_folders(root, texts)}
    found = found or {file: None for file in texts if len(file.parts) == 2}
    refuse_splits(root, dict.fromkeys(file.parts[-2] for file in found), ENDING, TEXT)
    return [
        Entry(TextFile(f"{TEXTS}{file}", root / file), {LABEL: composed(file.parts[-2])}, split=split)
        for file, split in found.items()
    ]
