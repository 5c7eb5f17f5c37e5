"""The layouts of a source folder: which sample has which labels, masks and split. Reads names, tables and a few images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.folders import NOWHERE, Contents, contents, describe_left_out
from flows.landing.class_folder_checks import refuse_no_classes
from flows.landing.conll import ENDING, read_tagged
from flows.landing.entries import LABEL, MASK, Entry, Listing, SourceFile, image_file
from flows.landing.given_splits import by_folder, in_split_folders
from flows.landing.misnamed_files import advise, refuse_tagged
from flows.landing.pairs import MaskPairs
from flows.landing.split_tables import read_split_tables, split_tables
from flows.landing.table_layout import read_listed
from flows.landing.tables import TABLES, composed
from flows.landing.texts import ENDING as TEXT_ENDING
from flows.landing.texts import folder_entries
from flows.manifest import IMAGES, MASKS, modality_in
from flows.words import counted

UNDERSTOOD = (
    "Layouts understood: class folders <class>/*.jpg or {train,val,test}/<class>/*.jpg; a table labels.csv or "
    "labels.parquet (columns file, targets, split, group) beside images/; image and mask pairs of the same stem (or x.jpg "
    "and x_mask.png) in images/ + masks/ or train/ + trainannot/ (or train_masks/). Texts: such a table with a "
    "column text in place of file, or one for each split (train.csv, dev.csv, test.csv), class folders of .txt, or tags of words "
    "in .conll files (train.conll, dev.conll, test.conll): a word and its tag a line (BIO; IOB1, BIOES, BILOU and BMES are read "
    "as BIO), sentences parted by empty lines."
)
# The endings of other tools' annotations of images, as COCO's and VOC's.
ANNOTATIONS = (".json", ".xml")
# Texts about a data set and its origin: that they are left out needs no warning.
_PAPERS = ("readme", "license", "licence", "copying", "citation", "changelog", "data.dvc")


def scan(root: Path, own: Collection[Path] = ()) -> Listing:
    """The listing of a source folder, without files in the folders of `own`.

    Raises AskedWrongly if it is missing, empty, unreadable, or of no layout understood.
    """
    if not _is_folder(root):
        raise AskedWrongly(f"source {str(root)!r} is not a folder that exists; give a folder, s3://bucket/prefix or 'digits'")
    source = contents(root, own)
    table = next((name for name in map(PurePosixPath, TABLES) if name in source.files), None)
    if table is not None:
        listing = read_listed(root, root / table, source)
        return Listing(
            _once(listing.entries), (*listing.warnings, *_left_out(root, source, listing.entries, {table})), _vanished(source)
        )
    images = source.images
    if not images and (tagged := read_tagged(root, source.files)).entries:
        left_out = _left_out(root, source, tagged.entries, of_sentences=True)
        return Listing(tagged.entries, (*tagged.warnings, *left_out), _vanished(source))
    if not images:
        refuse_tagged(root, source.files)
    if not images and (texts := folder_entries(root, source.files)):
        return Listing(_once(texts), _left_out(root, source, texts), _vanished(source))
    if not images and (tables := split_tables(root, source.files)):
        listing = read_split_tables(root, tables)
        left_out = _left_out(root, source, listing.entries, tables)
        return Listing(listing.entries, (*listing.warnings, *left_out), _vanished(source))
    if not images:
        raise _no_sample(root, source)
    unread = _annotations(source.files)
    try:
        entries = _in_folders(root, images)
    except AskedWrongly as error:
        raise AskedWrongly(f"{error}{unread}") from None
    if entries:
        return Listing(_once(entries), _left_out(root, source, entries), _vanished(source))
    raise AskedWrongly(
        f"source {str(root)!r} has {counted(len(images), 'image')}, e.g. {images[0]}, in no layout understood."
        f"{_deeper(root, images, _in_folders)}{unread} {UNDERSTOOD}"
    )


def _no_sample(root: Path, source: Contents) -> AskedWrongly:
    """What is to be said of a source without an image, and without a text in a layout of them."""
    advice, seen = advise(root, source.files), describe_left_out(source.files, source.passed)
    if texts := [file for file in source.files if file.suffix.lower() == TEXT_ENDING and not _is_paper(file)]:
        return AskedWrongly(
            f"source {str(root)!r} has {counted(len(texts), 'text')}, e.g. {_printable(texts[0])}, where no folder tells their "
            "classes: put those of each class into one folder, <class>/*.txt or {train,val,test}/<class>/*.txt."
            f"{_deeper(root, texts, folder_entries)}{advice} {UNDERSTOOD}"
        )
    return AskedWrongly(
        f"source {str(root)!r} is empty: it holds no image and no text{f', only {seen}' if seen else ''}; an image is what "
        f"Pillow reads: .jpg, .png, .tif, .webp and the like.{advice} {UNDERSTOOD}"
    )


def _in_folders(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    """The entries of images whose folders tell their labels, or whose names tell their masks; none in another layout."""
    return next((entries for read in (_pairs, _split_folders, _class_folders) if (entries := read(root, images))), [])


def _vanished(source: Contents) -> tuple[PurePosixPath, ...]:
    return (*source.empty, *(one.path for one in source.passed if one.reason == NOWHERE))


def _is_folder(root: Path) -> bool:
    try:
        return root.is_dir()
    except OSError as error:
        raise AskedWrongly(f"source {str(root)!r} cannot be read ({error.strerror}); nothing was changed") from None


def _deeper(root: Path, files: Sequence[PurePosixPath], read: Callable[[Path, Sequence[PurePosixPath]], Sequence[Entry]]) -> str:
    """The folder that all files lie under, in words, if enough to learn from is `read` in it; else ''."""
    tops = {file.parts[0] for file in files}
    if len(tops) != 1 or any(len(file.parts) < 3 for file in files):
        return ""
    top = tops.pop()
    try:
        entries = read(root / top, [file.relative_to(top) for file in files])
    except AskedWrongly:
        return ""
    is_enough = any(entry.masks for entry in entries) or len({entry.labels.get(LABEL) for entry in entries}) > 1
    return f" All lie under {top!r}: try that folder." if is_enough else ""


def _annotations(files: Sequence[PurePosixPath]) -> str:
    """That annotations beside images are not read, in words; '' if there are none."""
    found = next((file for file in files if file.suffix.lower() in ANNOTATIONS), None)
    if found is None:
        return ""
    return f" Annotations in {found.suffix} are not read ({_printable(found)}): write their labels into a table labels.csv."


def _once(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries, with a fault on each whose name in the data folder an earlier one has."""
    names: set[str] = set()
    checked = []
    for entry in entries:
        taken = entry.file in names
        names.add(entry.file)
        checked.append(
            replace(entry, fault=f"another {modality_in([entry.file])} of the source has the same name") if taken else entry
        )
    return tuple(checked)


def _class_folders(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    files = [file for file in images if len(file.parts) == 2]
    refuse_no_classes(root, _by_folder(files, 0))
    return [Entry(SourceFile(f"{IMAGES}{file}", root / file), {LABEL: composed(file.parts[0])}) for file in files]


def _split_folders(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    splits = in_split_folders(root, images)
    refuse_no_classes(root, _by_folder(splits, 1))
    return [
        Entry(SourceFile(f"{IMAGES}{file}", root / file), {LABEL: composed(file.parts[1])}, split=split)
        for file, split in splits.items()
    ]


def _by_folder(files: Iterable[PurePosixPath], depth: int) -> Mapping[str, Sequence[PurePosixPath]]:
    by_name: dict[str, list[PurePosixPath]] = {}
    for file in files:
        by_name.setdefault(file.parts[depth], []).append(file)
    return by_name


def _pairs(root: Path, images: Sequence[PurePosixPath]) -> list[Entry]:
    masks = MaskPairs(images)
    for folder, count in masks.halves.items():
        raise AskedWrongly(
            f"source {str(root)!r}: {count} images of {str(folder)!r} have a mask of their name with a word for masks behind it "
            "(x_mask.png, x.jpg.png), and others have none. Give every image one, or name them in a table labels.csv (columns "
            "file and mask). Nothing was changed"
        )
    return [
        Entry(image_file(root, file, IMAGES), {}, {MASK: image_file(root, mask, MASKS)}, split=by_folder(root, file))
        for file in images
        if file.parent not in masks.folders and (mask := masks.of(file))
    ]


def _left_out(
    root: Path, source: Contents, entries: Sequence[Entry], tables: Collection[PurePosixPath] = (), *, of_sentences: bool = False
) -> tuple[str, ...]:
    """A warning about all files that no entry uses, or none; `of_sentences` are in all `.conll` files."""
    used = {file.origin for entry in entries for file in (entry.source, *entry.masks.values()) if file}
    rest = [file for file in source.files if root / file not in used and file not in tables]
    if of_sentences:
        rest = [file for file in rest if file.suffix.lower() != ENDING]
    images = set(source.images).intersection(rest)
    others = [file for file in rest if file not in images and not _is_paper(file)]
    first = next((file for file in rest if file in images), None)
    where = "that its table does not name" if tables else "that are not in a place to which its layout gives a label"
    parts = [f"{counted(len(images), 'image')} {where}, e.g. {_printable(first)}"] if first else []
    more = describe_left_out(others, source.passed)
    return (f"left out of the source: {'; '.join([*parts, *([more] if more else [])])}",) if parts or more else ()


def _is_paper(file: PurePosixPath) -> bool:
    return len(file.parts) == 1 and file.name.lower().startswith(_PAPERS)


def _printable(file: PurePosixPath) -> str:
    return str(file).encode("utf-8", "backslashreplace").decode()
