"""A source's table of labels, read from CSV or Parquet into text cells."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly
from flows.landing.cells import texts_of

TEXT = "text"
TABLES = ("labels.csv", "labels.parquet")
_SPECIAL = frozenset({"file", "split", "group"})
# The columns that pandas adds if a frame's index is written with it.
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")
# Other separators that a header of one column may have.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Row:
    """A line: the sample that it names, its target cells (None if empty), and what is wrong with it, if anything.

    In a table of texts `file` is the text itself, and `place` the line's: row 7.
    """

    file: str
    cells: Mapping[str, str | None]
    split: str | None
    group: str | None
    fault: str | None = None
    place: str = ""


@dataclass(frozen=True)
class Table:
    """The lines of a table and its target columns, in its own order."""

    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    of_texts: bool = False


Line = tuple[int, Sequence[str]]


def read_table(path: Path) -> Table:
    """The table in a labels.csv or labels.parquet, with labels in Unicode's composed form (NFC).

    Raises AskedWrongly if it is damaged, not well formed, or lacks a column that it needs.
    """
    columns, lines = _parquet(path) if path.suffix == ".parquet" else read_csv(path)
    _check_columns(columns, path)
    columns = [composed(name.strip()) for name in columns]
    index = {name for name in columns if _INDEX.fullmatch(name)}
    # Beside files, what a column `text` holds is to be predicted like any other.
    of_texts = "file" not in columns
    special = {*_SPECIAL, TEXT} if of_texts else _SPECIAL
    targets = tuple(name for name in columns if name not in special and name != "digest" and name not in index)
    if not targets:
        raise AskedWrongly(f"{path.name} has the columns {columns} and no target: add one column for what is to be predicted")
    warnings = ["the column 'digest' of the table is left out: it is the manifest's own"] if "digest" in columns else []
    if index:
        warnings.append(f"left out of the table, since they number its rows: {', '.join(sorted(index))}")
    rows = _text_rows(columns, lines, targets, path) if of_texts else _rows(columns, lines, targets, path)
    return Table(targets, rows, tuple(warnings), of_texts)


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC): letters that look alike are then the same."""
    return unicodedata.normalize("NFC", text)


def _check_columns(columns: Sequence[str], path: Path) -> None:
    faults = [f"has the column {name!r}, which holds {odd}" for name in columns if (odd := odd_letter(name))]
    columns = [composed(name.strip()) for name in columns]
    faults += [f"has the column {name!r} twice" for name, count in Counter(columns).items() if count > 1]
    if "file" not in columns and TEXT not in columns:
        other = next((word for mark, word in _SEPARATORS.items() if len(columns) == 1 and mark in columns[0]), None)
        faults += [f"is parted by {other}, not by commas"] if other else ["has no column 'file' or 'text'"]
    faults += ["has a column without a name"] if "" in columns else []
    if faults:
        raise AskedWrongly(
            f"{path.name} {faults[0]}; its columns are {columns}. It needs `file`, or `text` for texts, and one column a target."
        )


def odd_letter(text: str) -> str | None:
    """A letter, in words, that a name or a label must not have (a line break, an invisible mark); None if there is none."""
    if "\0" in text:
        return "a NUL byte"
    if len(text.splitlines()) > 1 or text.splitlines() != [text][: bool(text)]:
        return "a line break"
    return "an invisible byte order mark" if "\ufeff" in text else None


def _text_rows(columns: Sequence[str], lines: Iterable[Line], targets: Sequence[str], path: Path) -> tuple[Row, ...]:
    rows = []
    for number, line in lines:
        cell = _cells(columns, number, line, path)
        labels = {t: composed(label) if (label := cell.get(t)) else None for t in targets}
        group = cell.get("group")
        rows.append(
            Row(cell.get(TEXT) or "", labels, cell.get("split"), composed(group) if group else None, None, f"row {number}")
        )
    return tuple(rows)


def _cells(columns: Sequence[str], number: int, line: Sequence[str], path: Path) -> dict[str, str | None]:
    """A line's cells by column, None if empty. Raises AskedWrongly on a wrong number of cells, or a letter that none may have."""
    if len(line) < len(columns) or any(text.strip() for text in line[len(columns) :]):
        raise AskedWrongly(f"{path.name} row {number} has {len(line)} cells for {len(columns)} columns: {','.join(line)[:200]!r}")
    for name, text in zip(columns, line, strict=False):
        # A text may well have more than one line; what else is wrong with it costs that one text.
        if (name != TEXT or "file" in columns) and (odd := odd_letter(text)):
            raise AskedWrongly(f"{path.name} row {number} holds {odd} in the column {name!r}: {text[:200]!r}")
    return {name: text.strip() or None for name, text in zip(columns, line, strict=False)}


def _rows(columns: Sequence[str], lines: Iterable[Line], targets: Sequence[str], path: Path) -> tuple[Row, ...]:
    by_file: dict[str, Row] = {}
    for number, line in lines:
        cell = _cells(columns, number, line, path)
        file = cell.get("file")
        if file is None:
            raise AskedWrongly(f"{path.name} row {number} names no file")
        labels = {t: composed(label) if (label := cell.get(t)) else None for t in targets}
        group = cell.get("group")
        row = Row(file, labels, cell.get("split"), composed(group) if group else None)
        if file in by_file and by_file[file] != row:
            row = Row(row.file, row.cells, row.split, row.group, "the table lists it twice with different cells")
        by_file[file] = row
    return tuple(by_file.values())


def read_csv(path: Path) -> tuple[list[str], list[Line]]:
    """The header of a CSV file, and its other lines with the numbers at which they begin, without empty ones.

    Raises AskedWrongly if it cannot be read, is not well formed, or has nothing but a header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AskedWrongly(f"{path.name} cannot be read: {error.strerror}") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise AskedWrongly(f"{path.name} is not a CSV file in UTF-8 but in UTF-16; save it as 'CSV UTF-8'")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise AskedWrongly(f"{path.name} is not a CSV file in UTF-8: {error}, in line {row}; save it as 'CSV UTF-8'") from None
    # A text may be longer than the csv module lets a cell be by default.
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        lines = [(number, row) for number, row in _records(text, path) if any(cell.strip() for cell in row)]
    finally:
        csv.field_size_limit(limit)
    if len(lines) < 2:
        raise AskedWrongly(f"{path.name} has no lines under its header")
    return list(lines[0][1]), lines[1:]


def _records(text: str, path: Path) -> Iterator[Line]:
    """The rows of a CSV text, with the numbers of the lines in which they begin. Raises AskedWrongly on a stray quote."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text):
            taken.append(line)
            yield line

    number = 1
    reader = csv.reader(lines(), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise AskedWrongly(f"{path.name} row {number} is not well formed ({error}): {_start(taken)}") from None
        if row is None:
            return
        raw = "".join(taken)
        # The csv module takes a quote within an unquoted cell as a letter.
        stray = next((cell for cell in row if '"' in cell and '"' + cell.replace('"', '""') + '"' not in raw), None)
        if stray is not None:
            raise AskedWrongly(f'{path.name} row {number} has a stray " in it: {_start(taken)}; write "" inside of quotes')
        yield number, row
        number += len(taken)
        taken.clear()


def _start(lines: Sequence[str]) -> str:
    return repr("".join(lines[:1])[:80].rstrip("\r\n"))


def _parquet(path: Path) -> tuple[list[str], list[Line]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise AskedWrongly(f"{path.name} is not a Parquet file: {error}") from None
    named = list(zip(map(str, table.column_names), table.columns, strict=True))
    try:
        # Columns of an index may be of any type, since they are left out.
        columns = [[""] * len(column) if _INDEX.fullmatch(name) else texts_of(name, column) for name, column in named]
    except AskedWrongly as error:
        raise AskedWrongly(f"{path.name}: {error}") from None
    return [name for name, _ in named], list(enumerate(zip(*columns, strict=True), start=1))
