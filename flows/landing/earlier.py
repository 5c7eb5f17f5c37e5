"""What earlier ingests left in a data folder: its tables, read and checked, and what one that was cut short was moving in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flows.errors import AskedWrongly
from flows.landing.tables import composed
from flows.manifest import FOLDER_OF, MASK_TABLE, MASKS, MEND, NAME, parse, parse_masks
from flows.records import Mask, Sample

# In the storage folder: the files that are being moved in, in case the move is cut short.
ARRIVING = "arriving.json"
MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Earlier:
    """The results of earlier ingests in a data folder: samples, masks, and the md5s with which they brought each file."""

    samples: tuple[Sample, ...]
    masks: Mapping[str, Mask]
    digests: Mapping[str, frozenset[str]]

    @cached_property
    def by_file(self) -> Mapping[str, Sample]:
        """The samples by their file."""
        return {sample.file: sample for sample in self.samples}


def read_earlier(data: Path, storage: Path) -> Earlier:
    """The results of earlier ingests, from a data folder's tables. Raises AskedWrongly if a table there is not ours."""
    _refuse_no_folder(data)
    text = _read(data / NAME)
    samples = _composed_labels(parse(text)) if text is not None else ()
    odd = next((s for s in samples if not MD5.fullmatch(s.digest) or not s.file.startswith((*FOLDER_OF.values(),))), None)
    if odd is not None:
        raise _no_table(data / NAME, f"it names {odd.file!r} with the digest {odd.digest!r}, which no ingest wrote")
    table = _read(data / MASK_TABLE)
    if table is not None and text is None:
        raise _no_table(data / MASK_TABLE, f"no {NAME} lies beside it")
    masks = parse_masks(table) if table is not None else {}
    digests: dict[str, set[str]] = {sample.file: {sample.digest} for sample in samples}
    for file, mask in masks.items():
        digests.setdefault(file, set()).add(mask.digest)
    for file, md5s in read_arriving(storage).items():
        digests.setdefault(file, set()).update(md5s)
    return Earlier(samples, masks, {file: frozenset(md5s) for file, md5s in digests.items()})


def _refuse_no_folder(data: Path) -> None:
    if os.path.lexists(data) and not data.is_dir():
        raise AskedWrongly(
            f"{data} is no folder, and the data of the workspace goes there; move it elsewhere. Nothing was changed"
        )


def _read(table: Path) -> str | None:
    if not os.path.lexists(table):
        return None
    try:
        return table.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _no_table(table, str(error)) from None


def _no_table(table: Path, why: str) -> AskedWrongly:
    return AskedWrongly(f"{table} is not the table that an ingest writes there: {why}. {MEND} Nothing was changed")


def read_arriving(storage: Path) -> dict[str, list[str]]:
    """The md5s, by file, of the files that ingests were moving in when they were cut short."""
    try:
        md5s: dict[str, list[str]] = json.loads((storage / ARRIVING).read_bytes())
    except (OSError, ValueError):
        return {}
    return md5s


def _composed_labels(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with targets and labels in Unicode's composed form, as new ones have them: one name is one class."""
    return tuple(replace(sample, labels=dict(map(_composed, sample.labels.items()))) for sample in samples)


def _composed(item: tuple[str, str | None]) -> tuple[str, str | None]:
    target, cell = item
    # The name of a mask's file stays as it lies in the data folder.
    return composed(target), composed(cell) if cell and not cell.startswith(MASKS) else cell
