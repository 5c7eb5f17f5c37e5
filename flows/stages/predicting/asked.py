"""What a person asks predictions for: samples in order, and between them what of folders and CSV files is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly


@dataclass(frozen=True)
class Unread:
    """An image or a text of a folder or a CSV that cannot be read, or a line that names none, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class AskedSample:
    """An image's file, or a text by its file or its letters, and the name that its answer gets.

    It `is_named` if a person named it by itself, and not only its folder or CSV.
    """

    name: str
    content: Path | str
    is_named: bool


@dataclass(frozen=True)
class Asked:
    """The samples in order, and between them lines of CSV files that name none; warnings about files passed over."""

    found: tuple[AskedSample | Unread, ...]
    warnings: tuple[str, ...]

    @property
    def samples(self) -> list[AskedSample]:
        """The samples alone."""
        return [each for each in self.found if not isinstance(each, Unread)]


def find_asked(
    files: Sequence[Path],
    of_folder: Callable[[Path], tuple[Sequence[Path], Sequence[str]]],
    of_csv: Callable[[Path], Sequence[AskedSample | Unread]],
) -> Asked:
    """The samples of files: `of_folder` gives those in a folder, with warnings, `of_csv` those that a CSV names."""
    found: list[AskedSample | Unread] = []
    warnings: list[str] = []
    for file in files:
        if file.is_dir():
            inside, told = of_folder(file)
            found += [AskedSample(str(path), path, False) for path in inside]
            warnings += told
        elif file.suffix.lower() == ".csv":
            found += of_csv(file)
        else:
            found.append(AskedSample(str(file), file, True))
    return Asked(tuple(found), tuple(warnings))


def read_column(file: Path, column: str | None, usual: str, what: str) -> tuple[str, list[tuple[str, str | Unread]]]:
    """The column of a CSV that is asked for, else the `usual` one or the only one; and of each line its name and its cell there.

    A line of another length has no cell. Raises AskedWrongly, saying `what` the column holds, if it is not there once.
    """
    from flows.landing.tables import read_csv

    columns, lines = read_csv(file)
    names = [name.strip() for name in columns]
    wanted = column or (names[0] if len(names) == 1 else usual)
    if names.count(wanted) != 1:
        count = "twice" if wanted in names else "not"
        raise AskedWrongly(f"{file} has the column {wanted!r} {count}; name that of {what} with --column: {', '.join(names)}")
    place = names.index(wanted)

    def cell_of(name: str, line: Sequence[str]) -> str | Unread:
        return line[place] if len(line) == len(names) else Unread(name, f"has {len(line)} cells for {len(names)} columns")

    named = [(f"{file} line {number}", line) for number, line in lines]
    return wanted, [(name, cell_of(name, line)) for name, line in named]
