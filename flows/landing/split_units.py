"""Samples whose split is to be settled, and the units of them that must share one. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# So many samples of a class stay in train.
MIN_TRAIN = 5
ClassName = tuple[str, str]
# The class of all samples.
EVERYTHING: ClassName = ("", "")


@dataclass(frozen=True)
class Unsettled:
    """A sample without a settled split: `given` is the source's split, `earlier` that of an earlier ingest.

    `classes` are (target, class name) pairs.
    """

    digest: str
    given: str | None = None
    earlier: str | None = None
    group: str | None = None
    classes: frozenset[ClassName] = frozenset()


@dataclass
class Unit:
    """Samples that must share a split: those of a group, and those with the same bytes."""

    key: str
    rows: list[int] = field(default_factory=list)
    choices: frozenset[str] = frozenset()
    classes: Counter[ClassName] = field(default_factory=Counter)


def share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(b"split:" + key.encode()).digest()[:8], "big") / 2**64


def units_of(rows: Sequence[Unsettled]) -> list[Unit]:
    """The units of all rows, by their keys."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    # Groups sort before digests, so the smaller root is a stable name: a group's where there is one.
    for row in rows:
        ends = [root(("digest", row.digest))] + ([root(("a group", row.group))] if row.group else [])
        parent[max(ends)] = min(ends)
    units: dict[tuple[str, str], Unit] = {}
    for index, row in enumerate(rows):
        name = root(("digest", row.digest))
        units.setdefault(name, Unit(key=name[1])).rows.append(index)
    return [units[name] for name in sorted(units)]


def by_share(units: Iterable[Unit]) -> list[Unit]:
    """Units in an order that depends on their keys alone."""
    return sorted(units, key=lambda unit: (share(unit.key), unit.key))


def put(indices: Iterable[int], split: str, splits: list[str | None]) -> None:
    """Set the split of the rows with these indices."""
    for index in indices:
        splits[index] = split


def classes_of(row: Unsettled) -> frozenset[ClassName]:
    """The row's classes, and the one of all samples."""
    return row.classes | {EVERYTHING}


def count_classes(rows: Sequence[Unsettled], splits: Sequence[str | None]) -> Mapping[str, Counter[ClassName]]:
    """How many samples of each class every split has; a row without a split counts for train."""
    counts: dict[str, Counter[ClassName]] = {"train": Counter(), "val": Counter(), "test": Counter()}
    for row, split in zip(rows, splits, strict=True):
        counts[split or "train"].update(classes_of(row))
    return counts
