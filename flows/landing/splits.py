"""The split of each sample: train, val or test. Pure: the same samples and history give the same splits in any order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flows.words import counted

VAL_SHARE = 0.15
TEST_SHARE = 0.15
MIN_TRAIN = 5
# Of the classes in a warning: a line each would hide the other warnings.
MAX_SHOWN = 3
_PROTECTION = {"train": 0, "val": 1, "test": 2}

ClassName = tuple[str, str]
_EVERYTHING: ClassName = ("", "")


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
class _Unit:
    """Samples that must share a split: those of a group, and those with the same bytes."""

    key: str
    rows: list[int] = field(default_factory=list)
    choices: frozenset[str] = frozenset()
    classes: Counter[ClassName] = field(default_factory=Counter)


def settle(rows: Sequence[Unsettled]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The split of every row, and warnings in words.

    Given and earlier splits are kept; a split that the source lacks is carved from train by a hash of the group or the digest.
    Of two splits for the same bytes the more protected one wins (test, then val, then train).
    """
    lacking = lacking_splits(rows)
    splits = _protect(rows)
    warnings = _overruled(rows, splits, lacking)
    free = _carve(rows, _units(rows), lacking, splits)
    warnings += _keep_small_classes(rows, free, splits)
    _refill_train(rows, free, splits)
    _cover_classes(rows, free, splits)
    settled = [split or "train" for split in splits]
    return tuple(settled), (*warnings, *_straddling(rows, settled), *_empty(settled, free))


def lacking_splits(rows: Iterable[Unsettled]) -> frozenset[str]:
    """The splits that the source does not give and that are carved from train, of val and test."""
    return frozenset({"val", "test"} - {row.given for row in rows})


def may_be_carved(row: Unsettled, lacking: frozenset[str]) -> bool:
    """Whether a row's split is neither known from before nor given for good by the source."""
    return row.earlier is None and (row.given is None or (row.given == "train" and bool(lacking)))


def share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(b"split:" + key.encode()).digest()[:8], "big") / 2**64


def _known(row: Unsettled) -> str | None:
    if row.given in ("val", "test"):
        return row.given
    return row.earlier


def _protect(rows: Sequence[Unsettled]) -> list[str | None]:
    """The known split of each row, the most protected one of all rows with its bytes; None if it is still open."""
    strongest: dict[str, str] = {}
    for row in rows:
        if split := _known(row):
            strongest[row.digest] = max(split, strongest.get(row.digest, split), key=_PROTECTION.__getitem__)
    return [strongest.get(row.digest) for row in rows]


def _overruled(rows: Sequence[Unsettled], splits: Sequence[str | None], lacking: frozenset[str]) -> list[str]:
    moved = sum(1 for row, split in zip(rows, splits, strict=True) if row.given and split not in {None, row.given, *lacking})
    if not moved:
        return []
    return [
        f"{counted(moved, 'sample is', 'samples are')} not in the split that the source gives them, because the same bytes are "
        "held out elsewhere or were before: the most protected split wins (test, then val)"
    ]


def _units(rows: Sequence[Unsettled]) -> list[_Unit]:
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
    units: dict[tuple[str, str], _Unit] = {}
    for index, row in enumerate(rows):
        name = root(("digest", row.digest))
        units.setdefault(name, _Unit(key=name[1])).rows.append(index)
    return [units[name] for name in sorted(units)]


def _carve(rows: Sequence[Unsettled], units: Iterable[_Unit], lacking: frozenset[str], splits: list[str | None]) -> list[_Unit]:
    """Settle the open rows of every unit; return the units with only open rows, which may be moved again."""
    free = []
    for unit in units:
        open_rows = [index for index in unit.rows if splits[index] is None]
        if not open_rows:
            continue
        unit.choices = frozenset.intersection(
            *(lacking if rows[index].given else frozenset({"val", "test"}) for index in open_rows)
        )
        settled = [split for index in unit.rows if (split := splits[index])]
        if settled:
            wanted = max(settled, key=_PROTECTION.__getitem__)
        else:
            wanted = _by_hash(unit.key)
            unit.classes = Counter(name for index in open_rows for name in _classes(rows[index]))
            free.append(unit)
        _put(open_rows, wanted if wanted in unit.choices else "train", splits)
    return free


def _by_hash(key: str) -> str:
    position = share(key)
    return "test" if position < TEST_SHARE else "val" if position < TEST_SHARE + VAL_SHARE else "train"


def _by_share(units: Iterable[_Unit]) -> list[_Unit]:
    return sorted(units, key=lambda unit: (share(unit.key), unit.key))


def _put(indices: Iterable[int], split: str, splits: list[str | None]) -> None:
    for index in indices:
        splits[index] = split


def _classes(row: Unsettled) -> frozenset[ClassName]:
    return row.classes | {_EVERYTHING}


def _count(rows: Sequence[Unsettled], splits: Sequence[str | None]) -> Mapping[str, Counter[ClassName]]:
    counts: dict[str, Counter[ClassName]] = {"train": Counter(), "val": Counter(), "test": Counter()}
    for row, split in zip(rows, splits, strict=True):
        counts[split or "train"].update(_classes(row))
    return counts


def _keep_small_classes(rows: Sequence[Unsettled], free: Sequence[_Unit], splits: list[str | None]) -> list[str]:
    """Put carved units back into train if a class of theirs has too few samples for MIN_TRAIN there and one in each split."""
    pool, choices = _count(rows, splits)["train"].copy(), Counter[ClassName]()
    for unit in free:
        if splits[unit.rows[0]] != "train":
            pool.update(unit.classes)
        for name in unit.classes:
            choices[name] = max(choices[name], len(unit.choices))
    small = {name for name, wanted in choices.items() if wanted and pool[name] < MIN_TRAIN + wanted}
    for unit in free:
        if not small.isdisjoint(unit.classes):
            _put(unit.rows, "train", splits)
            unit.choices = frozenset()
    return _too_small({name: pool[name] for name in sorted(small - {_EVERYTHING})})


def _refill_train(rows: Sequence[Unsettled], free: Sequence[_Unit], splits: list[str | None]) -> None:
    """Put carved units back into train while a class has fewer than MIN_TRAIN samples there, or none for a split without it.

    They come from the split that has most of the class.
    """
    counts, carved = _count(rows, splits), defaultdict[ClassName, list[_Unit]](list)
    for unit in _by_share(unit for unit in free if splits[unit.rows[0]] != "train"):
        for name in unit.classes:
            carved[name].append(unit)
    for name, units in sorted(carved.items()):
        choices = frozenset[str]().union(*(unit.choices for unit in units))
        while units := [unit for unit in units if splits[unit.rows[0]] != "train"]:
            lacking = sum(not counts[split][name] for split in choices)
            if counts["train"][name] >= MIN_TRAIN + lacking:
                break
            unit = max(units, key=lambda unit: counts[str(splits[unit.rows[0]])][name])
            split = str(splits[unit.rows[0]])
            if counts["train"][name] >= MIN_TRAIN and counts[split][name] == unit.classes[name]:
                break
            _put(unit.rows, "train", splits)
            counts[split].subtract(unit.classes)
            counts["train"].update(unit.classes)


def _too_small(counts: Mapping[ClassName, int]) -> list[str]:
    """A warning about the classes that stay in train, given with their numbers of samples; none if there are none."""
    shown = [(f"{name!r} of {target}", counted(count, "sample")) for (target, name), count in list(counts.items())[:MAX_SHOWN]]
    if len(counts) == 1:
        return [f"class {shown[0][0]} is too small to be split ({shown[0][1]}): all of it stays in train"]
    examples = ", ".join(f"{name} ({count})" for name, count in shown)
    return [f"{len(counts)} classes are too small to be split: all of them stay in train, e.g. {examples}"] if counts else []


def _cover_classes(rows: Sequence[Unsettled], free: Sequence[_Unit], splits: list[str | None]) -> None:
    """Give a carved split one unit of each class that chance left out of it, if train can spare it."""
    counts = _count(rows, splits)
    spare: dict[ClassName, list[_Unit]] = defaultdict(list)
    for unit in _by_share(unit for unit in free if splits[unit.rows[0]] == "train" and unit.choices):
        for name in unit.classes:
            spare[name].append(unit)
    for split in ("test", "val"):
        for name in sorted(spare):
            if counts[split][name]:
                continue
            for unit in spare[name]:
                left = counts["train"]
                if (
                    splits[unit.rows[0]] == "train"
                    and split in unit.choices
                    and all(left[other] - lost >= MIN_TRAIN for other, lost in unit.classes.items())
                ):
                    _put(unit.rows, split, splits)
                    counts["train"].subtract(unit.classes)
                    counts[split].update(unit.classes)
                    break


def _straddling(rows: Sequence[Unsettled], splits: Sequence[str]) -> list[str]:
    places: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        if row.group:
            places[row.group].add(split)
    apart = sorted(group for group, splits_of in places.items() if len(splits_of) > 1)
    lie = counted(len(apart), "group lies", "groups lie")
    return [f"{lie} in several splits, which the source or an earlier ingest gave them, e.g. {apart[0]!r}"] if apart else []


def _empty(splits: Sequence[str], free: Sequence[_Unit]) -> list[str]:
    """A warning about each of val and test that is empty, and why no sample could be carved into it."""
    if len(splits) < MIN_TRAIN + 2:
        why = "train is too small to carve it from"
    elif not free:
        why = "the samples keep the splits that they have"
    elif not any(unit.choices for unit in free):
        why = "every sample that could be carved is of a class that is too small to be split"
    else:
        why = "train can spare no group of samples"
    return [f"no sample is in {split}: the source gives none and {why}" for split in ("val", "test") if split not in splits]
