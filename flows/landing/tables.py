"""A source's table of labels, read from CSV or Parquet into text cells."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly

TABLES = ("labels.csv", "labels.parquet")
_SPECIAL = frozenset({"file", "split", "group"})


@dataclass(frozen=True)
class Row:
    """One line: the image it names, its target cells (None where empty), and what is wrong with it, if anything."""

    file: str
    cells: Mapping[str, str | None]
    split: str | None
    group: str | None
    fault: str | None = None


@dataclass(frozen=True)
class Table:
    """The lines of a table and its target columns, in its own order."""

    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """The table in a labels.csv or labels.parquet. Raises AskedWrongly where it is damaged or lacks what it needs."""
    columns, lines = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    faults = [f"has the column {name!r} twice" for name in twice]
    faults += ["has no column 'file'"] if "file" not in columns else []
    faults += ["has a column without a name"] if "" in columns else []
    if faults:
        raise AskedWrongly(f"{path.name} {faults[0]}; its columns are {columns}. It needs `file` and one column a target.")
    targets = tuple(name for name in columns if name not in _SPECIAL and name != "digest")
    if not targets:
        raise AskedWrongly(f"{path.name} has the columns {columns} and no target: add one column for what is to be predicted")
    warnings = ("the column 'digest' of the table is left out: it is the manifest's own",) if "digest" in columns else ()
    return Table(targets, _rows(columns, lines, targets, path), warnings)


def _rows(columns: Sequence[str], lines: Sequence[Sequence[str]], targets: Sequence[str], path: Path) -> tuple[Row, ...]:
    found: dict[str, Row] = {}
    for number, line in enumerate(lines, start=2):
        if any(text.strip() for text in line[len(columns) :]):
            raise AskedWrongly(f"{path.name} row {number} has {len(line)} cells for {len(columns)} columns: {','.join(line)!r}")
        cell = {name: text.strip() or None for name, text in zip(columns, line, strict=False)}
        file = cell.get("file")
        if file is None:
            raise AskedWrongly(f"{path.name} row {number} names no file")
        row = Row(file, {t: cell.get(t) for t in targets}, cell.get("split"), cell.get("group"))
        if file in found and found[file] != row:
            row = Row(row.file, row.cells, row.split, row.group, "the table lists it twice with different cells")
        found[file] = row
    return tuple(found.values())


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise AskedWrongly(f"{path.name} is not a CSV file in UTF-8: {error}") from None
    if len(rows) < 2:
        raise AskedWrongly(f"{path.name} has no lines under its header")
    return [name.strip() for name in rows[0]], rows[1:]


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise AskedWrongly(f"{path.name} is not a Parquet file: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    # A missing number reads as NaN, which alone does not equal itself.
    lines = [["" if cell is None or cell != cell else str(cell) for cell in line] for line in zip(*columns, strict=True)]
    return [str(name) for name in table.column_names], lines
