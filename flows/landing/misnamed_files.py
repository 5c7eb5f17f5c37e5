"""Files that hold samples under names that do not say so, and what to call them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.names import split_at_an_end
from flows.landing.tagged_lines import is_tagged, read_start
from flows.landing.texts import ENDING

# So many files are opened to see what they hold.
_MANY, _LOOKED_AT_BYTES = 20, 2000
_TABLES = frozenset({".csv", ".tsv", ".parquet", ".json", ".jsonl", ".xlsx"})


def refuse_tagged(root: Path, files: Iterable[PurePosixPath], known: Collection[str | None] = ()) -> None:
    """Raise AskedWrongly if one of the files, named as a split is that is not among the `known` ones, holds tagged sentences."""
    named = [file for file in files if (split := _split_of(file)) and split not in known]
    tagged = next((file for file in named[:_MANY] if is_tagged(root / file)), None)
    if tagged:
        raise AskedWrongly(f"source {str(root)!r}: {_rename(tagged)} Nothing was changed")


def advise(root: Path, files: Sequence[PurePosixPath]) -> str:
    """What to do with files of which none is understood, in a sentence; '' if nothing is to be said."""
    tagged = next((file for file in files[:_MANY] if is_tagged(root / file)), None)
    if tagged:
        return f" {_rename(tagged)}"
    table = next((file for file in files if file.suffix.lower() in _TABLES), None)
    if table and len(table.parts) > 1:
        return f" If {_printable(table)} is a table of the samples, give its folder as the source."
    if table:
        return (
            f" If {_printable(table)} is a table of the samples, write it as labels.csv, with commas, or as labels.parquet; one "
            "of texts of a single split as train.csv, dev.csv or test.csv."
        )
    # A class has a folder; beside it may lie anything.
    inside = [file for file in files if len(file.parts) > 1 and file.suffix.lower() != ENDING]
    text = next((file for file in inside[:_MANY] if _is_text(root / file)), None)
    if text:
        return f" If {_printable(text)!r} is a text, let its name end in {ENDING}, and those of its like."
    return ""


def _is_text(path: Path) -> bool:
    """Whether a file begins as texts do, in whichever encoding of bytes: without control characters but white space."""
    start = read_start(path, _LOOKED_AT_BYTES)
    return bool(start.strip()) and not any(byte < 32 and byte not in b"\t\n\f\r" for byte in start)


def _split_of(file: PurePosixPath) -> str | None:
    return split_at_an_end(file.stem, halves=True) or split_at_an_end(file.name, halves=True)


def _rename(file: PurePosixPath) -> str:
    return (
        f"{_printable(file)!r} holds a word and its tag a line: let its name end in .conll, and those of its like, as in "
        "train.conll, dev.conll and test.conll."
    )


def _printable(file: PurePosixPath) -> str:
    return str(file).encode(errors="backslashreplace").decode()
