"""The manifest: a data version's tables of samples and of masks, as text and as values. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flows.errors import AskedWrongly
from flows.records import SPLITS, Mask, Sample
from flows.shared_rows import SharedRows
from heads.catalogue import Modality
from heads.tasks.bio import is_cell, read_cell, spans_of

NAME = "manifest.csv"
MASK_TABLE = "masks.csv"
QUARANTINE = "quarantine.csv"
IMAGES = "images/"
TEXTS = "texts/"
# Where samples of each modality lie in a data folder; a folder holds those of one.
FOLDER_OF: Mapping[Modality, str] = {"image": IMAGES, "text": TEXTS}
MASKS = "masks/"
MEND = (
    "Where this file is yours, move it out of the data folder; where it was an ingest's, move it away too, then run "
    "`headstart data checkout HEAD`."
)
# Not just `recipe`, which may well be the name of a target.
RECIPE = "headstart.recipe"
OWN_COLUMNS = ("digest", "file", "split", "group", RECIPE)
_RECIPES = {"": 1, "2": 2, "3": 3}
# Lines as `io.StringIO(text, newline="")` gives them, which would hold the text again, at four bytes a letter.
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def render(samples: Iterable[Sample]) -> str:
    """The manifest as CSV text: a line a sample, sorted by file; equal samples give equal bytes.

    The column of recipes is there only if a sample has another recipe than the first.
    """
    rows = sorted(samples, key=lambda sample: sample.file)
    targets = tuple(rows[0].labels) if rows else ()
    grouped = any(sample.group is not None for sample in rows)
    read = any(sample.recipe != 1 for sample in rows)
    header = ["digest", "file", "split", *(["group"] if grouped else []), *([RECIPE] if read else []), *targets]
    body = (
        [
            *(row.digest, row.file, row.split),
            *([row.group or ""] if grouped else []),
            *([_recipe_text(row.recipe)] if read else []),
            *(row.labels[t] or "" for t in targets),
        ]
        for row in rows
    )
    return table_text([header, *body])


def parse(text: str) -> tuple[Sample, ...]:
    """The samples of a manifest's text. Raises AskedWrongly if it is not a manifest."""
    reader = csv.DictReader(line[0] for line in _LINES.finditer(text))
    columns = reader.fieldnames or []
    if not {"digest", "file", "split"} <= set(columns):
        raise AskedWrongly(f"{NAME} has columns {list(columns)}; it needs digest, file, split. {MEND}")
    targets = [column for column in columns if column not in OWN_COLUMNS]
    rows = SharedRows()
    return tuple(_sample(row, targets, rows) for row in reader)


def render_masks(masks: Mapping[str, Mask]) -> str:
    """The mask files as CSV text, a line each, sorted by file: the md5, and the number of pixels of each value, ascending.

    The column of recipes is there only if a mask has another recipe than the first.
    """
    read = any(mask.recipe != 1 for mask in masks.values())
    lines = [
        (file, masks[file].digest, _pixels_text(masks[file].pixels), *([_recipe_text(masks[file].recipe)] if read else []))
        for file in sorted(masks)
    ]
    return table_text([("file", "digest", "pixels", *(["recipe"] if read else [])), *lines])


def parse_masks(text: str) -> dict[str, Mask]:
    """The masks of a table's text, by file name. Raises AskedWrongly if it is not such a table."""
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return {row["file"]: Mask(row["digest"], _pixels(row["pixels"]), _RECIPES[row.get("recipe") or ""]) for row in rows}
    except (KeyError, ValueError, AttributeError, csv.Error) as error:
        raise AskedWrongly(f"{MASK_TABLE} is damaged ({error}); it needs file, digest, pixels. {MEND}") from None


def modality_in(files: Iterable[str]) -> Modality:
    """The modality of samples by the names of their files: text if they lie where texts do."""
    return "text" if any(file.startswith(TEXTS) for file in files) else "image"


def mask_files(samples: Iterable[Sample]) -> frozenset[str]:
    """The mask files that samples name."""
    return frozenset(cell for sample in samples for cell in sample.labels.values() if cell and cell.startswith(MASKS))


def table_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV text with plain newlines."""
    return "".join(",".join(map(_quoted, row)) + "\n" for row in rows)


def is_mask_target(samples: Iterable[Sample], target: str) -> bool:
    """Whether a target's cells are files under `masks/` rather than class names."""
    cells = [cell for sample in samples if (cell := sample.labels.get(target)) is not None]
    return bool(cells) and all(cell.startswith(MASKS) for cell in cells)


def is_tags_target(samples: Iterable[Sample], target: str) -> bool:
    """Whether a target's cells are tags of words rather than class names."""
    cells = [cell for sample in samples if (cell := sample.labels.get(target)) is not None]
    return bool(cells) and all(map(is_cell, cells))


def class_counts(samples: Sequence[Sample]) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """The number of samples by target, class and split, of tags that of spans by their type; without targets of masks."""
    targets = samples[0].labels if samples else {}
    return {target: _by_class(samples, target) for target in targets if not is_mask_target(samples, target)}


def split_counts(samples: Iterable[Sample]) -> Mapping[str, int]:
    """The number of samples of every split, zeros included."""
    counts = Counter(sample.split for sample in samples)
    return {split: counts[split] for split in SPLITS}


def _quoted(cell: str) -> str:
    # By hand, since the csv module leaves a lone carriage return bare and then reads it as the end of the line.
    return '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in ',"\r\n') else cell


def _recipe_text(recipe: int) -> str:
    return "" if recipe == 1 else str(recipe)


def _pixels_text(pixels: Mapping[int, int]) -> str:
    return " ".join(f"{value}:{pixels[value]}" for value in sorted(pixels))


def _pixels(text: str) -> dict[int, int]:
    return {int(value): int(count) for value, _, count in (pair.partition(":") for pair in text.split())}


def _by_class(samples: Sequence[Sample], target: str) -> dict[str, dict[str, int]]:
    cells = [(label, s.split) for s in samples if (label := s.labels[target]) is not None]
    if is_tags_target(samples, target):
        counts = Counter((span.type, split) for cell, split in cells for span in spans_of(read_cell(cell)))
    else:
        counts = Counter(cells)
    return {label: {split: counts[label, split] for split in SPLITS} for label in sorted({label for label, _ in counts})}


def _sample(row: Mapping[str, str], targets: Sequence[str], rows: SharedRows) -> Sample:
    if row["split"] not in SPLITS:
        raise AskedWrongly(f"{NAME} gives {row['file']} the split {row['split']!r}; allowed: {', '.join(SPLITS)}. {MEND}")
    labels = {target: row[target] or None for target in targets}
    recipe = _RECIPES.get(row.get(RECIPE) or "")
    if recipe is None:
        raise AskedWrongly(f"{NAME} gives {row['file']} the recipe {row[RECIPE]!r}, which a newer Headstart knows; update it")
    return rows.sample(row["digest"], row["file"], row["split"], labels, row.get("group") or None, recipe)
