"""The output of the command: results on standard output, notes, warnings and progress on standard error."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

# Wide if piped into a file, so that a table keeps its columns whole.
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, emoji=False)


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, with columns of numbers aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    filled = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(filled) and all(isinstance(row[index], int | float) for row in filled)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in filled:
        table.add_row(*[f"{cell:.4f}" if isinstance(cell, float) else escape(str(cell)) for cell in row])
    out.print(table)


def note(text: str) -> None:
    """Print a note on standard error."""
    err.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    err.print(f"[yellow]warning[/yellow] {escape(text)}", soft_wrap=True)


def note_whole(text: str) -> None:
    """Print a note once and whole, whenever Ctrl-C or SIGTERM comes: it is heeded after the last letter. In the main thread."""
    came = list[int]()
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        note(text)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars on standard error, or nothing if that is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=err, transient=True, disable=not err.is_terminal) as bars:
        yield bars


def size(num_bytes: float) -> str:
    """Bytes as a person reads them, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
