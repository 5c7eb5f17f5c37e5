"""Score tables: their files, and their content as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from flows.errors import AskedWrongly
from flows.places import Root, StoredFile, open_place
from flows.records import ScoreTable
from heads.tasks.rows import Scored

# Incremented when score tables gain rows or measures, so that older ones are made again.
SCORES_FORMAT = 3


def scores_file(storage: Root, bundle_digest: str, data_version: str) -> StoredFile:
    """The file of a bundle's score table on a data version's holdout, or, by the digest of a part of a version, on that."""
    return StoredFile(open_place(storage).within("scores"), f"{bundle_digest[:16]}-{data_version}-{SCORES_FORMAT}.json")


def read_scores(file: StoredFile) -> ScoreTable:
    """The score table that a job wrote. Raises AskedWrongly if it is gone."""
    table = file.read_json()
    if table is None:
        raise AskedWrongly(f"the score table {file.address} is gone: retrain again")
    rows = tuple(_read_row(row) for row in table["rows"])
    return ScoreTable(table["bundle_digest"], table["data_version"], rows, table["metrics"], table["tasks"])


def write_scores(file: StoredFile, table: ScoreTable) -> None:
    """Write a score table."""
    content = {
        "bundle_digest": table.bundle_digest,
        "data_version": table.data_version,
        "tasks": table.tasks,
        "rows": [astuple(row) for row in table.rows],
        "metrics": table.metrics,
    }
    file.write_json(content)


def _read_row(row: Sequence[Any]) -> Scored:
    digest, target, truth, predicted, probability, probabilities, pixels = row
    counts = tuple((true, guess, count) for true, guess, count in pixels)
    return Scored(digest, target, truth, predicted, probability, probabilities, counts)
