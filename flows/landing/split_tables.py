"""The layout of texts in tables of one split each, named after them: train.csv, dev.csv and test.csv, or `.parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.entries import Listing
from flows.landing.given_splits import by_file_name
from flows.landing.table_layout import split_value
from flows.landing.tables import Table, read_table
from flows.landing.texts import table_entries

_ENDINGS = (".csv", ".parquet")


def split_tables(root: Path, files: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The tables of a source, not in a folder, with the splits that their names say; none if no name does.

    Raises AskedWrongly if some say a split and another does not.
    """
    tables = [file for file in files if len(file.parts) == 1 and file.suffix.lower() in _ENDINGS]
    return {file: split for file, split in by_file_name(root, tables).items() if split}


def read_split_tables(root: Path, splits: dict[PurePosixPath, str]) -> Listing:
    """An entry for every line of some tables of texts; one without a split of its own has that of its table.

    Raises AskedWrongly if a table is not well formed, names files, or has other targets than the first.
    """
    tables = {file: read_table(root / file) for file in splits}
    _refuse_unequal(root, tables)
    rows = [
        replace(row, split=split_value(row.split, root / file) or splits[file], place=f"{file} {row.place}")
        for file, table in tables.items()
        for row in table.rows
    ]
    warnings = dict.fromkeys(warning for table in tables.values() for warning in table.warnings)
    targets = next(iter(tables.values())).targets
    return Listing(table_entries(Table(targets, tuple(rows), of_texts=True), lambda split: split), tuple(warnings))


def _refuse_unequal(root: Path, tables: dict[PurePosixPath, Table]) -> None:
    (first, expected), *_ = tables.items()
    for file, table in tables.items():
        if not table.of_texts:
            raise AskedWrongly(
                f"source {str(root)!r}: {file} names files in its column 'file', and the source holds no image; give texts "
                "themselves in a column 'text'. Nothing was changed"
            )
        if {*table.targets} != {*expected.targets}:
            raise AskedWrongly(
                f"source {str(root)!r}: {first} has the targets {_named(expected.targets)}, and {file} {_named(table.targets)}; "
                "give all of them the same columns, or take out what has no labels. Nothing was changed"
            )


def _named(targets: Sequence[str]) -> str:
    return ", ".join(map(repr, targets))
