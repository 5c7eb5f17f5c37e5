"""Class names as people write and read them. No torch here."""

from __future__ import annotations

MAX_CLASSES_SHOWN = 50


def split_labels(cell: str) -> tuple[str, ...]:
    """The labels of a multi-label cell, each once, sorted, without blanks around them: 'b| a' gives a and b."""
    return tuple(sorted({label for part in cell.split("|") if (label := part.strip())}))


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Names joined by commas; of more than 50 the first 50 and the number of the others."""
    more = len(names) - MAX_CLASSES_SHOWN
    return ", ".join(names[:MAX_CLASSES_SHOWN]) + (f" and {more} more in `classes.json`" if more > 0 else "")
