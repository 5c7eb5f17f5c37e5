"""The split of each sample: train, val or test. Pure: the same samples and history give the same splits in any order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from flows.landing.class_splits import spread_classes
from flows.landing.split_units import MIN_TRAIN, Unit, Unsettled, classes_of, put, share, units_of
from flows.words import counted

VAL_SHARE = 0.15
TEST_SHARE = 0.15
_PROTECTION = {"train": 0, "val": 1, "test": 2}


def settle(rows: Sequence[Unsettled], sets: Collection[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The split of every row, and warnings in words.

    Given and earlier splits are kept; a split that the source lacks is carved from train by a hash of the group or the digest.
    Of two splits for the same bytes the more protected one wins (test, then val, then train). `sets` are the targets whose
    samples have several labels each: a rare label keeps half of its samples in train, where a class of few keeps all. Else the
    held out samples would be those without any rare label.
    """
    lacking = lacking_splits(rows)
    splits = _protect(rows)
    warnings = _overruled(rows, splits, lacking)
    free = _carve(rows, units_of(rows), lacking, splits)
    warnings += spread_classes(rows, free, splits, sets)
    settled = [split or "train" for split in splits]
    return tuple(settled), (*warnings, *_straddling(rows, settled), *_empty(settled, free))


def lacking_splits(rows: Iterable[Unsettled]) -> frozenset[str]:
    """The splits that the source does not give and that are carved from train, of val and test."""
    return frozenset({"val", "test"} - {row.given for row in rows})


def may_be_carved(row: Unsettled, lacking: frozenset[str]) -> bool:
    """Whether a row's split is neither known from before nor given for good by the source."""
    return row.earlier is None and (row.given is None or (row.given == "train" and bool(lacking)))


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


def _carve(rows: Sequence[Unsettled], units: Iterable[Unit], lacking: frozenset[str], splits: list[str | None]) -> list[Unit]:
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
            unit.classes = Counter(name for index in open_rows for name in classes_of(rows[index]))
            free.append(unit)
        put(open_rows, wanted if wanted in unit.choices else "train", splits)
    return free


def _by_hash(key: str) -> str:
    position = share(key)
    return "test" if position < TEST_SHARE else "val" if position < TEST_SHARE + VAL_SHARE else "train"


def _straddling(rows: Sequence[Unsettled], splits: Sequence[str]) -> list[str]:
    places: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        if row.group:
            places[row.group].add(split)
    apart = sorted(group for group, splits_of in places.items() if len(splits_of) > 1)
    lie = counted(len(apart), "group lies", "groups lie")
    return [f"{lie} in several splits, which the source or an earlier ingest gave them, e.g. {apart[0]!r}"] if apart else []


def _empty(splits: Sequence[str], free: Sequence[Unit]) -> list[str]:
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
