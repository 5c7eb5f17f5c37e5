"""The ledger: every decision on a model's versions, as lines of a file that only grows."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import yaml

from flows.places import Folder, StoredFile
from flows.records import Finding

# The fields that are left out, one after another, of an entry that is too long for a tag.
DROPPED = ("findings", "figures", "reasons")
# The kind of an entry on a champion that no decision of ours made.
MOVED = "moved by another hand"


@dataclass(frozen=True)
class LedgerEntry:
    """A decision on a version, made at `time` (seconds since 1970), with the champion's version before and after it.

    `version` is empty of a verdict on a work that could not be registered: its look at the holdout counts all the same.
    `asked_by` is who ran the command or the flow, `git_commit` the workspace's commit, `level_spent` the part of a verdict's
    alpha that its look at the holdout took; entries of earlier versions lack them. `superior` is false of one that was promoted
    as not worse by a margin, `waits` true of one that is proven and not approved yet. `after_move` is the id of the last move by
    another hand before it, or, of a decision made once more, of the last decision; `fresh` is the digest of the new samples that
    were bet on, empty if the holdout was asked. `question` is that of an entry that differs from an earlier one in nothing else;
    see `distinct`.
    """

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
    findings: tuple[Finding, ...] = ()
    metric: str = ""
    recipe: str = ""
    asked_by: str = ""
    git_commit: str = ""
    level_spent: float = 0.0
    after_move: str = ""
    superior: bool = True
    waits: bool = False
    fresh: str = ""
    question: str = ""

    @property
    def is_look(self) -> bool:
        """Whether a verdict asked the holdout how well a challenger reads it."""
        # Verdicts of before there was an account were looks, each of them.
        return "look" in self.figures or "p_value" in self.figures

    @property
    def id(self) -> str:
        """Twelve hex digits, equal for the same decision on the same version with the same champion, whenever it is written."""
        said: list[object] = [
            self.kind,
            self.name,
            self.version,
            self.work_key,
            self.promoted,
            self.champion_before,
            self.champion_after,
        ]
        said += [self.after_move] if self.after_move else []
        said += [self.fresh] if self.fresh else []
        said += [self.question] if self.question else []
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]

    def distinct(self, history: Sequence[LedgerEntry]) -> LedgerEntry:
        """The entry, told apart from an equal one of the history, oldest first, that is another decision.

        Such is a verdict on the same version by another measure or recipe, or one that looked where the other did not; and a
        version made champion once more after it was taken back. The last decision, cut short and made again, is the same one.
        """
        known, made = {entry.id: entry for entry in history}, champion_at(history, math.inf)
        equal = known.get(self.id)
        own = self if equal is None or self._asks_as(equal) else replace(self, question=self._question)
        if made is None or self.champion_before == self.champion_after:
            return own
        again = replace(own, after_move=made.after_move)
        if again.id == made.id:
            return again
        return replace(own, after_move=made.id) if own.id in known else own

    def _asks_as(self, other: LedgerEntry) -> bool:
        # Entries of earlier versions have neither a measure nor a recipe.
        named = all(not one or not two or one == two for one, two in ((self.metric, other.metric), (self.recipe, other.recipe)))
        return named and (self.waits, self.superior, self.is_look) == (other.waits, other.superior, other.is_look)

    @property
    def _question(self) -> str:
        return json.dumps([self.metric, self.recipe, self.waits, self.superior, self.is_look])

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self) | {"id": self.id})

    @classmethod
    def from_json(cls, text: str) -> LedgerEntry:
        """The entry of a line of JSON. Raises ValueError, TypeError or KeyError on any other text."""
        return cls._made(json.loads(text))

    def to_text(self, limit_chars: int) -> str:
        """The entry for people, as YAML; if it is too long, findings are left out first, then figures, then the last reasons."""
        when = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%d %H:%M UTC")
        content = {"when": when, **json.loads(json.dumps(asdict(self)))}
        text = _as_yaml(content)
        while len(text) > limit_chars and (longest := next((name for name in DROPPED if content[name]), None)):
            content[longest] = content[longest][:-1] if longest == "reasons" else type(content[longest])()
            text = _as_yaml(content)
        return text

    @classmethod
    def from_text(cls, text: str) -> LedgerEntry:
        """The entry of a text in YAML, or, of earlier versions, JSON. Raises ValueError, TypeError or KeyError on any other."""
        if text.startswith("{"):
            return cls.from_json(text)
        try:
            return cls._made(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def _made(cls, fields: dict[str, Any]) -> LedgerEntry:
        content = {name: value for name, value in fields.items() if name not in ("id", "when")}
        # Entries of earlier versions have no findings.
        findings = tuple(Finding(**finding | {"notes": tuple(finding["notes"])}) for finding in content.get("findings", ()))
        return cls(**content | {"reasons": tuple(content["reasons"]), "findings": findings})


def _as_yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=10**6)


def append(file: StoredFile, entry: LedgerEntry) -> None:
    """Add the entry at the file's end, unless the file has it; a line cut short by a crash stays there and is never read.

    In a bucket the object is written anew: only a holder of the model's lock may.
    """
    if not isinstance(file.place, Folder):
        content = file.read() or b""
        if added := _added(content, entry):
            file.write(content + added)
        return
    file.place.path.mkdir(parents=True, exist_ok=True)
    with (file.place.path / file.name).open("a+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        if added := _added(ledger.read(), entry):
            ledger.write(added)
            ledger.flush()
            os.fsync(ledger.fileno())


def _added(content: bytes, entry: LedgerEntry) -> bytes:
    """What is to be added to the content of a ledger's file for an entry; nothing if that is in it."""
    if any(known.id == entry.id for known in _entries(content)):
        return b""
    torn = bool(content) and not content.endswith(b"\n")
    return b"\n" * torn + entry.to_json().encode() + b"\n"


def read(file: StoredFile) -> tuple[LedgerEntry, ...]:
    """The file's entries in the order they were written; none if there is no file."""
    return tuple(_entries(file.read() or b""))


def merge(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """The entries without duplicates, oldest first."""
    return tuple(sorted({entry.id: entry for entry in entries}.values(), key=lambda entry: entry.time))


def champion_at(entries: Iterable[LedgerEntry], time: float) -> LedgerEntry | None:
    """The decision that made the champion at `time` (seconds since 1970); None if there was no champion yet.

    `entries` are one model's, oldest first. The champion at that time is the entry's `champion_after`.
    """
    made = [entry for entry in entries if entry.time <= time and entry.champion_after != entry.champion_before]
    return made[-1] if made else None


def _entries(content: bytes) -> Iterable[LedgerEntry]:
    for line in content.splitlines():
        try:
            yield LedgerEntry.from_json(line.decode())
        except (ValueError, TypeError, KeyError):
            continue
