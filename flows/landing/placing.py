"""Moving files into `data/` and out of it: only a file that an earlier ingest brought, by its md5, is replaced or removed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.earlier import ARRIVING, MD5, Earlier, read_arriving
from flows.manifest import MASK_TABLE, NAME, QUARANTINE, render, render_masks, table_text
from flows.records import Mask, Sample
from flows.workspace import md5_of

QUARANTINE_COLUMNS = ("file", "digest", "reason")


def quarantined(data: Path) -> dict[str, tuple[str, str]] | None:
    """Digest and reason of each file in the quarantine list; None if `quarantine.csv` is there but not ours."""
    path = data / QUARANTINE
    if not os.path.lexists(path):
        return {}
    try:
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    ours = all(len(row) == 3 and (not row[1] or MD5.fullmatch(row[1])) for row in rows[1:])
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
            arriving = read_arriving(storage)
            for name in map(str, staged):
                arriving[name] = [*arriving.get(name, ()), md5_of(self.incoming / name)]
            _put(storage / ARRIVING, json.dumps(arriving), self.incoming)
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


def forget_arriving(storage: Path) -> None:
    """Forget the list of files being moved in: the move, and the removals, are done."""
    (storage / ARRIVING).unlink(missing_ok=True)


def _put(path: Path, text: str, incoming: Path) -> None:
    if path.exists() and path.read_bytes() == text.encode():
        return
    incoming.mkdir(parents=True, exist_ok=True)
    staged = incoming / path.name
    staged.write_text(text, encoding="utf-8", newline="\n")
    os.replace(staged, path)
