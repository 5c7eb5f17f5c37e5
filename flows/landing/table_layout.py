"""The layout of a source with a table: an entry for each of its lines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.folders import Contents, is_image
from flows.landing.entries import MASK, Entry, Listing, SourceFile, image_file
from flows.landing.names import SPLIT_NAMES
from flows.landing.pairs import MaskPairs
from flows.landing.tables import TEXT, Table, composed, read_table
from flows.landing.texts import ENDING as TEXT_ENDING
from flows.landing.texts import table_entries
from flows.manifest import IMAGES, MASKS

_MASK_FOLDERS = ("masks", "mask", "annotations", "annot", "labels")
_Known = Mapping[PurePosixPath, PurePosixPath]


def read_listed(root: Path, path: Path, source: Contents) -> Listing:
    """An entry for every line of the table at `path`, whose files lie in `root`; these need not end as images do."""
    table = read_table(path)
    if table.of_texts:
        return Listing(table_entries(table, lambda value: split_value(value, path)), table.warnings)
    known = {**{_composed(file): file for file in source.files}, **{file: file for file in source.files}}
    masks = MaskPairs(source.images)
    mask_columns = [c for c in table.targets if _is_mask_column(root, [row.cells[c] for row in table.rows], known)]
    stems = bool(masks.folders) and not mask_columns and MASK not in table.targets
    entries = []
    for row in table.rows:
        file = _find(root, row.file, known, ("images",))
        cells = {c: _find(root, cell, known, _MASK_FOLDERS) if (cell := row.cells[c]) else None for c in mask_columns}
        named = {c: _mask_file(root, mask) for c, mask in cells.items()}
        if stems:
            named[MASK] = _mask_file(root, masks.of(file)) if file else None
        gone = [f"its {c} {row.cells[c]!r} is not in the source" for c in mask_columns if row.cells[c] and not cells[c]]
        fault = row.fault or _fault_of(row.file, file, table) or (gone[0] if gone else None)
        image = image_file(root, file, IMAGES) if file else SourceFile(IMAGES + row.file, b"")
        labels = {c: row.cells[c] for c in table.targets if c not in mask_columns}
        entries.append(Entry(image, labels, named, split_value(row.split, path), row.group, fault))
    return Listing(tuple(entries), table.warnings)


def _fault_of(cell: str, file: PurePosixPath | None, table: Table) -> str | None:
    """Why the file that a cell names is no image of the source, in words; None if it may be one."""
    if PurePosixPath(cell).suffix.lower() == TEXT_ENDING:
        return f"is a text, and `file` names images: give texts themselves in a column `{TEXT}`, and no column `file`"
    if file:
        return None
    if Path(cell).is_absolute():
        return "no such image in the source; write paths relative to the table's folder"
    both = f"; a table of texts has a column `{TEXT}` and no column `file`" if TEXT in table.targets else ""
    return f"no such image in the source{both}"


def _mask_file(root: Path, file: PurePosixPath | None) -> SourceFile | None:
    return image_file(root, file, MASKS) if file else None


def _find(root: Path, cell: str, known: _Known, folders: Sequence[str]) -> PurePosixPath | None:
    """The file of the source that a cell names, with or without one of `folders` before it, in any Unicode composition."""
    named = Path(cell.replace("\\", "/"))
    if named.is_absolute():
        named = _within(root, named)
    plain = PurePosixPath(os.path.normpath(named.as_posix()))
    places = [plain, *(PurePosixPath(folder) / plain for folder in folders)]
    return next((known[name] for place in places for name in (place, _composed(place)) if name in known), None)


def _within(root: Path, named: Path) -> Path:
    """An absolute path as one in `root`, whichever links lead to both; itself if it lies elsewhere."""
    if named.is_relative_to(root):
        return named.relative_to(root)
    # The file itself may be a link that leads out of the source.
    there, real = Path(os.path.realpath(named.parent)) / named.name, Path(os.path.realpath(root))
    return there.relative_to(real) if there.is_relative_to(real) else named


def _composed(file: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(composed(file.as_posix()))


def _is_mask_column(root: Path, cells: Sequence[str | None], known: _Known) -> bool:
    filled = [cell for cell in cells if cell]
    return all(map(is_image, filled)) and any(_find(root, cell, known, _MASK_FOLDERS) for cell in filled)


def split_value(value: str | None, path: Path) -> str | None:
    """The split that a table's cell names, None if it is empty. Raises AskedWrongly on another word."""
    if value is None:
        return None
    if value.lower() not in SPLIT_NAMES:
        raise AskedWrongly(f"{path.name} gives the split {value!r}; allowed: {', '.join(SPLIT_NAMES)}, or an empty cell")
    return SPLIT_NAMES[value.lower()]
