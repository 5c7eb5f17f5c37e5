"""The ledger: every verdict and rollback of a model, as lines of a file that only grows. Nothing but the disk is touched here."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """What was decided at `time` (seconds since 1970) about a version, and who was champion before and after."""

    kind: str
    name: str
    version: str
    time: float
    promoted: bool
    reasons: tuple[str, ...]
    champion_before: str | None
    champion_after: str | None
    data_version: str
    variant_id: str
    work_key: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Twelve hex digits: equal for the same decision on the same version beside the same champion, whenever it is written."""
        said = [self.kind, self.name, self.version, self.work_key, self.promoted, self.champion_before, self.champion_after]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]

    def to_json(self, limit_chars: int | None = None) -> str:
        """One line of JSON; past the limit the figures go first, then the last reasons."""
        told = asdict(self) | {"id": self.id}
        text = json.dumps(told)
        while limit_chars and len(text) > limit_chars and (told["figures"] or told["reasons"]):
            told |= {"figures": {}} if told["figures"] else {"reasons": told["reasons"][:-1]}
            text = json.dumps(told)
        return text

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """The entry of a line; raises ValueError, TypeError or KeyError on any other text."""
        told: dict[str, Any] = json.loads(text)
        told.pop("id", None)
        return cls(**told | {"reasons": tuple(told["reasons"])})


def append(file: Path, entry: Entry) -> None:
    """Add the entry at the file's end, unless the file holds it; a line cut short by a crash is left behind, and skipped."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        content = ledger.read()
        if any(known.id == entry.id for known in _entries(content)):
            return
        torn = bool(content) and not content.endswith(b"\n")
        ledger.write(b"\n" * torn + entry.to_json().encode() + b"\n")
        ledger.flush()
        os.fsync(ledger.fileno())


def read(file: Path) -> tuple[Entry, ...]:
    """The file's entries in the order they were written; none where there is no file."""
    return tuple(_entries(file.read_bytes())) if file.is_file() else ()


def merge(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Each decision once, oldest first."""
    return tuple(sorted({entry.id: entry for entry in entries}.values(), key=lambda entry: entry.time))


def _entries(content: bytes) -> Iterable[Entry]:
    for line in content.splitlines():
        try:
            yield Entry.from_json(line.decode())
        except (ValueError, TypeError, KeyError):
            continue
