"""The layouts of a source folder: which image has which labels, masks and split. Reads names and tables, never images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.tables import TABLES, composed, read_table
from flows.manifest import IMAGES, MASKS
from flows.workspace import IMAGE_ENDINGS

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
MASK_FOLDERS = ("masks", "mask", "annotations", "annot", "labels")
MASK_SUFFIXES = ("annot", "_annot", "_masks", "masks", "_mask", "_labels")
LABEL = "label"
MASK = "mask"
UNDERSTOOD = (
    "Layouts understood: class folders <class>/*.jpg or {train,val,test}/<class>/*.jpg; a table labels.csv or "
    "labels.parquet (columns file, targets, split, group) beside images/; image and mask pairs of the same stem in "
    "images/ + masks/ or train/ + trainannot/ (or train_masks/)."
)


@dataclass(frozen=True)
class Picture:
    """An image file: its name in the data folder, and its bytes or where they are."""

    file: str
    content: Path | bytes

    def read(self) -> bytes:
        """The bytes. Raises OSError where the file cannot be read, or is a pipe or a device that would never end."""
        if isinstance(self.content, Path) and self.content.exists() and not self.content.is_file():
            raise OSError("it is no regular file")
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Entry:
    """One image of a source and what the source says of it; `fault` says why it cannot be used, None if it can."""

    image: Picture
    labels: Mapping[str, str | None]
    masks: Mapping[str, Picture | None] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """All entries of a source, and what a person should know about those left out."""

    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()


def scan(root: Path) -> Listing:
    """The entries of a source folder. Raises AskedWrongly where it is missing, empty or of no layout understood."""
    if not root.is_dir():
        raise AskedWrongly(f"source {str(root)!r} is not a folder that exists; give a folder, s3://bucket/prefix or 'digits'")
    files = _walk(root)
    images = [file for file in files if file.suffix.lower() in IMAGE_ENDINGS]
    if not images:
        raise AskedWrongly(f"source {str(root)!r} is empty: it holds no image ({', '.join(IMAGE_ENDINGS)}). {UNDERSTOOD}")
    table = next((root / name for name in TABLES if PurePosixPath(name) in files), None)
    if table is not None:
        listing = _table(root, table, images)
        return Listing(_once(listing.entries), listing.warnings)
    for read in (_pairs, _split_folders, _class_folders):
        entries = read(root, images)
        if entries:
            return Listing(_once(entries), _left_out(images, entries, root))
    raise AskedWrongly(f"source {str(root)!r} has {len(images)} images, e.g. {images[0]}, in no layout understood. {UNDERSTOOD}")


def _once(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries, with a fault on each that would take the name of one before it."""
    seen: set[str] = set()
    found = []
    for entry in entries:
        taken = entry.image.file in seen
        seen.add(entry.image.file)
        found.append(replace(entry, fault="another image of the source has the same name") if taken else entry)
    return tuple(found)


def _walk(root: Path) -> list[PurePosixPath]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        found += [here / name for name in sorted(names) if not name.startswith(".")]
    return found


def _picture(root: Path, file: PurePosixPath, kind: str) -> Picture:
    """The picture kept under `images/` or `masks/` by its path in the source, that folder's own name not repeated."""
    name = file.as_posix()
    return Picture(kind + name.removeprefix(kind), root / file)


def _class_folders(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    found = [file for file in images if len(file.parts) == 2]
    if all(file.parts[0].lower() in SPLIT_NAMES for file in found):
        return []
    return [Entry(Picture(f"{IMAGES}{file}", root / file), {LABEL: composed(file.parts[0])}) for file in found]


def _split_folders(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    found = [file for file in images if len(file.parts) == 3 and file.parts[0].lower() in SPLIT_NAMES]
    return [
        Entry(Picture(f"{IMAGES}{file}", root / file), {LABEL: composed(file.parts[1])}, split=SPLIT_NAMES[file.parts[0].lower()])
        for file in found
    ]


def _pairs(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    masks = _MaskIndex(images)
    if not masks.folders:
        return []
    return [
        Entry(_picture(root, file, IMAGES), {}, {MASK: _mask_picture(root, masks.of(file))}, split=_split_in(file))
        for file in images
        if file.parent not in masks.folders and masks.of(file)
    ]


def _mask_picture(root: Path, file: PurePosixPath | None) -> Picture | None:
    return _picture(root, file, MASKS) if file else None


def _split_in(file: PurePosixPath) -> str | None:
    return next((SPLIT_NAMES[part.lower()] for part in file.parts[:-1] if part.lower() in SPLIT_NAMES), None)


class _MaskIndex:
    """The mask of an image by folder and stem; `folders` are those that hold masks."""

    def __init__(self, images: Iterable[PurePosixPath]) -> None:
        self._by_stem = {(file.parent, composed(file.stem)): file for file in images}
        folders = {file.parent for file in self._by_stem.values()}
        self.folders = frozenset(mask for folder in folders for mask in _mask_folders(folder) if mask in folders)

    def of(self, image: PurePosixPath) -> PurePosixPath | None:
        places = (self._by_stem.get((folder, composed(image.stem))) for folder in _mask_folders(image.parent))
        return next((file for file in places if file), None)


def _mask_folders(folder: PurePosixPath) -> list[PurePosixPath]:
    """Where masks of a folder's images may lie: `images` turned into `masks`, or `train` into `trainannot`."""
    found = []
    for index, part in enumerate(folder.parts):
        lower = part.lower()
        names = list(MASK_FOLDERS) if lower == "images" else []
        names += [part + suffix for suffix in MASK_SUFFIXES] if lower in SPLIT_NAMES or lower == "images" else []
        found += [PurePosixPath(*folder.parts[:index], name, *folder.parts[index + 1 :]) for name in names]
    return found


def _left_out(images: Sequence[PurePosixPath], entries: Sequence[Entry], root: Path) -> tuple[str, ...]:
    pictures = [p for entry in entries for p in (entry.image, *entry.masks.values()) if p]
    used = {picture.content for picture in pictures}
    rest = [file for file in images if root / file not in used]
    if not rest:
        return ()
    return (f"{len(rest)} images of the source are in no place its layout gives a label, and were left out, e.g. {rest[0]}",)


def _table(root: Path, path: Path, images: Sequence[PurePosixPath]) -> Listing:
    table = read_table(path)
    known = {**{_composed(file): file for file in images}, **{file: file for file in images}}
    masks = _MaskIndex(images)
    mask_columns = [c for c in table.targets if _is_mask_column(root, [row.cells[c] for row in table.rows], known)]
    stems = bool(masks.folders) and not mask_columns and MASK not in table.targets
    entries = []
    for row in table.rows:
        file = _find(root, row.file, known, ("images",))
        cells = {c: _find(root, cell, known, MASK_FOLDERS) if (cell := row.cells[c]) else None for c in mask_columns}
        found: dict[str, Picture | None] = {c: _mask_picture(root, mask) for c, mask in cells.items()}
        if stems:
            found[MASK] = _mask_picture(root, masks.of(file)) if file else None
        gone = [f"its {c} {row.cells[c]!r} is not in the source" for c in mask_columns if row.cells[c] and not cells[c]]
        fault = row.fault or (None if file else "no such image in the source") or (gone[0] if gone else None)
        picture = _picture(root, file, IMAGES) if file else Picture(IMAGES + row.file, b"")
        labels = {c: row.cells[c] for c in table.targets if c not in mask_columns}
        entries.append(Entry(picture, labels, found, _split_value(row.split, path), row.group, fault))
    left_out = _left_out([file for file in images if file.parent not in masks.folders], entries, root)
    return Listing(tuple(entries), (*table.warnings, *left_out))


def _find(root: Path, cell: str, known: Mapping[PurePosixPath, PurePosixPath], folders: Sequence[str]) -> PurePosixPath | None:
    """The file of the source that a cell names, its letters composed or not: as it stands, or inside one of `folders`."""
    named = Path(cell.replace("\\", "/"))
    if named.is_absolute() and named.is_relative_to(root):
        named = named.relative_to(root)
    plain = PurePosixPath(os.path.normpath(named.as_posix()))
    places = [plain, *(PurePosixPath(folder) / plain for folder in folders)]
    return next((known[name] for place in places for name in (place, _composed(place)) if name in known), None)


def _composed(file: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(composed(file.as_posix()))


def _is_mask_column(root: Path, cells: Sequence[str | None], known: Mapping[PurePosixPath, PurePosixPath]) -> bool:
    filled = [cell for cell in cells if cell]
    looks = all(PurePosixPath(cell).suffix.lower() in IMAGE_ENDINGS for cell in filled)
    return looks and any(_find(root, cell, known, MASK_FOLDERS) for cell in filled)


def _split_value(value: str | None, path: Path) -> str | None:
    if value is None:
        return None
    if value.lower() not in SPLIT_NAMES:
        raise AskedWrongly(f"{path.name} gives the split {value!r}; allowed: {', '.join(SPLIT_NAMES)}, or an empty cell")
    return SPLIT_NAMES[value.lower()]
