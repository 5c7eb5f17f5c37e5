"""Score tables: their files, and their content as values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from flows.files import write_json
from flows.records import ScoreTable
from heads.tasks.rows import Scored

# Incremented when score tables gain rows or measures, so that older ones are made again.
SCORES_FORMAT = 3


def scores_file(storage: Path, bundle_digest: str, data_version: str) -> Path:
    """The file of a bundle's score table on a data version's holdout."""
    return storage / "scores" / f"{bundle_digest[:16]}-{data_version}-{SCORES_FORMAT}.json"


def read_scores(file: Path) -> ScoreTable:
    """The score table that a job wrote."""
    table = json.loads(file.read_text())
    rows = tuple(_read_row(row) for row in table["rows"])
    return ScoreTable(table["bundle_digest"], table["data_version"], rows, table["metrics"], table["tasks"])


def write_scores(file: Path, table: ScoreTable) -> None:
    """Write a score table."""
    content = {
        "bundle_digest": table.bundle_digest,
        "data_version": table.data_version,
        "tasks": table.tasks,
        "rows": [astuple(row) for row in table.rows],
        "metrics": table.metrics,
    }
    write_json(file, content)


def _read_row(row: Sequence[Any]) -> Scored:
    digest, target, truth, predicted, probability, probabilities, pixels = row
    counts = tuple((true, guess, count) for true, guess, count in pixels)
    return Scored(digest, target, truth, predicted, probability, probabilities, counts)
