"""The answers of `headstart predict`: as a table for people, as JSON, and as a CSV file."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli import screen
from flows.errors import AskedWrongly
from flows.files import write_whole
from flows.words import counted, start_of
from heads.tasks.bio import OUTSIDE

if TYPE_CHECKING:
    from flows.stages.predicting.asked import Unread
    from flows.stages.predicting.readings import Answered, Reading, Readings

NUM_SHARES_TOLD = 3
# Of a cell of the table; `--json` and `--csv` hold all of it.
MAX_CELL_CHARS = 400


def show(readings: Readings, model: str, *, as_json: bool) -> None:
    """Print warnings and what could not be read on standard error, the answers on standard output."""
    for warning in readings.warnings:
        screen.warn(warning)
    for image in readings.unread:
        screen.warn(f"{image.file}: {image.reason}; left out")
    rows = readings.rows
    if as_json:
        predictions = [{"file": row.file} | {target: asdict(answer) for target, answer in row.answers.items()} for row in rows]
        unread = [asdict(image) for image in readings.unread]
        screen.show_json({"predictions": predictions} | ({"unread": unread} if unread else {}))
    else:
        targets = list(rows[0].answers) if rows else []
        title = f"{counted(len(rows), 'sample')} read by {model}"
        cells = [[r.file, *[start_of(_words(r.answers[t]), MAX_CELL_CHARS) for t in targets]] for r in rows]
        screen.show_table(title, ["file", *targets], cells)


def refuse_existing(file: Path) -> None:
    """Raise AskedWrongly if the file exists, or its folder does not."""
    if os.path.lexists(file):
        raise AskedWrongly(f"{file} is there already and is not written over; name another file with --csv, or move it away")
    if not file.absolute().parent.is_dir():
        raise AskedWrongly(f"{file} lies in a folder that does not exist; make the folder, or name another file with --csv")


def write_csv(readings: Readings, file: Path) -> None:
    """Write a line a sample, whole or not at all: the file, each target's answer, the probability of a class, what was wrong.

    They are in the order of what was asked, so that a CSV's lines keep theirs. Sets of labels are written as in tables of labels
    (`a|b`), masks as the path of their file, tags with spaces between.
    """
    text = io.StringIO()
    lines = [_line(each) for each in readings.told]
    columns = list(_line(readings.rows[0])) if readings.rows else ["file"]
    writer = csv.DictWriter(text, [*columns, "error"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(file, text.getvalue())


def _line(told: Reading | Unread) -> dict[str, object]:
    from flows.stages.predicting.readings import Reading

    if not isinstance(told, Reading):
        return {"file": told.file, "error": told.reason}
    return {"file": told.file} | {name: cell for t, answer in told.answers.items() for name, cell in _cells(t, answer).items()}


def _cells(target: str, answer: Answered) -> dict[str, object]:
    from flows.stages.predicting.readings import ClassAnswer, LabelsAnswer, TagsAnswer

    match answer:
        case ClassAnswer():
            return {target: answer.label, f"{target}/probability": f"{answer.probability:.6g}"}
        case LabelsAnswer():
            return {target: "|".join(answer.labels)}
        case TagsAnswer():
            return {target: " ".join(answer.tags)}
    return {target: answer.mask}


def _words(answer: Answered) -> str:
    from flows.stages.predicting.readings import ClassAnswer, LabelsAnswer, TagsAnswer

    match answer:
        case ClassAnswer():
            return f"{answer.label} ({answer.probability:.3f})"
        case LabelsAnswer():
            return ", ".join(f"{name} ({answer.probabilities[name]:.3f})" for name in answer.labels) or "none"
        case TagsAnswer():
            pairs = zip(answer.words, answer.tags, strict=True)
            return " ".join(word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in pairs)
    largest = sorted(answer.shares.items(), key=lambda share: -share[1])[:NUM_SHARES_TOLD]
    return f"{answer.mask} ({', '.join(f'{name}: {share:.0%}' for name, share in largest)})"
