"""Moving files into `data/` and out of it: only a file that an earlier ingest brought, by its md5, is replaced or removed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.merge import composed_labels
from flows.manifest import FOLDER_OF, MASK_TABLE, MEND, NAME, QUARANTINE, parse, parse_masks, render, render_masks, table_text
from flows.records import Mask, Sample
from flows.workspace import md5_of

QUARANTINE_COLUMNS = ("file", "digest", "reason")
# In the storage folder: the files that are being moved in, in case the move is cut short.
_ARRIVING = "arriving.json"
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Earlier:
    """The results of earlier ingests in a data folder: samples, masks, and the md5s with which they brought each file."""

    samples: tuple[Sample, ...]
    masks: Mapping[str, Mask]
    digests: Mapping[str, frozenset[str]]


def read_earlier(data: Path, storage: Path) -> Earlier:
    """The results of earlier ingests, from a data folder's tables. Raises AskedWrongly if a table there is not ours."""
    _refuse_no_folder(data)
    text = _read(data / NAME)
    samples = composed_labels(parse(text)) if text is not None else ()
    odd = next((s for s in samples if not _MD5.fullmatch(s.digest) or not s.file.startswith((*FOLDER_OF.values(),))), None)
    if odd is not None:
        raise _no_table(data / NAME, f"it names {odd.file!r} with the digest {odd.digest!r}, which no ingest wrote")
    table = _read(data / MASK_TABLE)
    if table is not None and text is None:
        raise _no_table(data / MASK_TABLE, f"no {NAME} lies beside it")
    masks = parse_masks(table) if table is not None else {}
    digests: dict[str, set[str]] = {sample.file: {sample.digest} for sample in samples}
    for file, mask in masks.items():
        digests.setdefault(file, set()).add(mask.digest)
    for file, md5s in _arriving(storage).items():
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


def _arriving(storage: Path) -> dict[str, list[str]]:
    """The md5s, by file, of the files that ingests were moving in when they were cut short."""
    try:
        md5s: dict[str, list[str]] = json.loads((storage / _ARRIVING).read_bytes())
    except (OSError, ValueError):
        return {}
    return md5s


def quarantined(data: Path) -> dict[str, tuple[str, str]] | None:
    """Digest and reason of each file in the quarantine list; None if `quarantine.csv` is there but not ours."""
    path = data / QUARANTINE
    if not os.path.lexists(path):
        return {}
    try:
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    ours = all(len(row) == 3 and (not row[1] or _MD5.fullmatch(row[1])) for row in rows[1:])
    if not ours or not (data / NAME).exists() or tuple(rows[0] if rows else ()) != QUARANTINE_COLUMNS:
        return None
    return {file: (digest, reason) for file, digest, reason in rows[1:]}


def quarantine_text(rows: Mapping[str, tuple[str, str]]) -> str:
    """A quarantine list as text, from digest and reason by file; '' if there are none."""
    lines = [(file, *rows[file]) for file in sorted(rows)]
    return table_text([QUARANTINE_COLUMNS, *lines]) if lines else ""


@dataclass(frozen=True)
class Move:
    """A move into a data folder: the files under `incoming`, then its tables; `quarantine` is a table's text, '' for none."""

    data: Path
    incoming: Path
    earlier: Earlier
    samples: Sequence[Sample]
    masks: Mapping[str, Mask]
    quarantine: str

    def refuse_strangers(self) -> None:
        """Raise AskedWrongly if a file in the data folder is in the way that no ingest brought, or that was changed since."""
        odd = list(dict.fromkeys(name for file in self._staged() if (name := self._in_the_way(file))))
        if self.quarantine and quarantined(self.data) is None:
            odd.append(QUARANTINE)
        if odd:
            raise AskedWrongly(
                f"{self.data} holds what no ingest brought, or not as it is now, and it is in the way ({len(odd)}): "
                f"{', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}. Move it out of {self.data}, then run this again. "
                "Nothing was changed"
            )

    def carry_out(self, storage: Path) -> None:
        """Move the files into place, the manifest last: until then the old one counts."""
        self.data.mkdir(parents=True, exist_ok=True)
        staged = list(self._staged())
        if staged:
            self.incoming.mkdir(parents=True, exist_ok=True)
            arriving = _arriving(storage)
            for name in map(str, staged):
                arriving[name] = [*arriving.get(name, ()), md5_of(self.incoming / name)]
            _put(storage / _ARRIVING, json.dumps(arriving), self.incoming)
        for file in staged:
            goal = self.data / file
            goal.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.incoming / file, goal)
        ours = quarantined(self.data) is not None
        tables = [(QUARANTINE, self.quarantine)] if ours else []
        for name, text in (*tables, (MASK_TABLE, render_masks(self.masks) if self.masks else "")):
            if text:
                _put(self.data / name, text, self.incoming)
            else:
                (self.data / name).unlink(missing_ok=True)
        _put(self.data / NAME, render(self.samples), self.incoming)

    def sweep(self, named: Collection[str]) -> None:
        """Remove the files that earlier ingests brought and that are not in `named`, unless they were changed since."""
        for file in self.earlier.digests.keys() - named:
            path = PurePosixPath(file)
            if self._blocked(path) is None and self._is_ours(path):
                (self.data / path).unlink()

    def _staged(self) -> Iterator[PurePosixPath]:
        found = sorted(path for path in self.incoming.rglob("*") if path.is_file())
        return (PurePosixPath(path.relative_to(self.incoming).as_posix()) for path in found)

    def _in_the_way(self, file: PurePosixPath) -> str | None:
        blocked = self._blocked(file)
        if blocked is not None:
            return str(blocked)
        return str(file) if os.path.lexists(self.data / file) and not self._is_ours(file) else None

    def _blocked(self, file: PurePosixPath) -> PurePosixPath | None:
        """The first path above a file that is no folder, or is a link; None if there is none."""
        above = [parent for parent in reversed(file.parents) if parent.parts]
        return next((p for p in above if (at := self.data / p).is_symlink() or (at.exists() and not at.is_dir())), None)

    def _is_ours(self, file: PurePosixPath) -> bool:
        path = self.data / file
        return path.is_file() and md5_of(path) in self.earlier.digests.get(str(file), ())


def settle(storage: Path) -> None:
    """Forget the list of files being moved in: the move, and the removals, are done."""
    (storage / _ARRIVING).unlink(missing_ok=True)


def _put(path: Path, text: str, incoming: Path) -> None:
    if path.exists() and path.read_bytes() == text.encode():
        return
    incoming.mkdir(parents=True, exist_ok=True)
    staged = incoming / path.name
    staged.write_text(text, encoding="utf-8", newline="\n")
    os.replace(staged, path)
