"""Every class in train, and in val and test as far as its samples go. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from flows.landing.split_units import EVERYTHING, MIN_TRAIN, ClassName, Unit, Unsettled, by_share, count_classes, put
from flows.words import counted, first_of

# Of the classes in a warning: a line each would hide the other warnings.
MAX_SHOWN = 3


def spread_classes(rows: Sequence[Unsettled], free: Sequence[Unit], splits: list[str | None], sets: Collection[str]) -> list[str]:
    """Move `free` units, which may lie anywhere, until each class is in every split that it has samples for; warnings in words.

    A class keeps MIN_TRAIN samples in train; one with too few for that and for the other splits keeps all. Of the targets in
    `sets` a label with few samples keeps half of them. `splits` is changed in place.
    """
    pool = _pool_of(rows, free, splits)
    least = {name: min(MIN_TRAIN, (size + 1) // 2) if name[0] in sets else MIN_TRAIN for name, size in pool.items()}
    warnings = _keep_small_classes(free, splits, pool, sets)
    counts = count_classes(rows, splits)
    _refill_train(free, splits, counts, least)
    _cover_classes(free, splits, counts, least)
    return warnings


def _pool_of(rows: Sequence[Unsettled], free: Sequence[Unit], splits: Sequence[str | None]) -> Counter[ClassName]:
    """How many samples of each class are in train or can be put there."""
    pool = count_classes(rows, splits)["train"].copy()
    for unit in free:
        if splits[unit.rows[0]] != "train":
            pool.update(unit.classes)
    return pool


def _keep_small_classes(
    free: Sequence[Unit], splits: list[str | None], pool: Mapping[ClassName, int], sets: Collection[str]
) -> list[str]:
    """Put carved units back into train if a class of theirs has too few samples for MIN_TRAIN there and one in each split."""
    choices = Counter[ClassName]()
    for unit in free:
        for name in unit.classes:
            choices[name] = max(choices[name], len(unit.choices))
    few = {name for name, wanted in choices.items() if wanted and pool[name] < MIN_TRAIN + wanted}
    small = {name for name in few if name[0] not in sets}
    for unit in free:
        if not small.isdisjoint(unit.classes):
            put(unit.rows, "train", splits)
            unit.choices = frozenset()
    return _too_small({name: pool[name] for name in sorted(small - {EVERYTHING})}) + _rare(sorted(few - small), pool)


def _rare(labels: Sequence[ClassName], pool: Mapping[ClassName, int]) -> list[str]:
    if not labels:
        return []
    examples = first_of([f"{name!r} of {target} ({counted(pool[target, name], 'sample')})" for target, name in labels], MAX_SHOWN)
    have = counted(len(labels), "label has", "labels have")
    return [f"{have} too few samples for train, val and test: none or few of them are held out: {examples}"]


def _refill_train(
    free: Sequence[Unit], splits: list[str | None], counts: Mapping[str, Counter[ClassName]], least: Mapping[ClassName, int]
) -> None:
    """Put carved units back into train while a class has too few samples there, or none to spare for a split without it.

    They come from the split that has most of the class. `counts` are those of the splits, and follow them.
    """
    carved = defaultdict[ClassName, list[Unit]](list)
    for unit in by_share(unit for unit in free if splits[unit.rows[0]] != "train"):
        for name in unit.classes:
            carved[name].append(unit)
    for name, units in sorted(carved.items()):
        choices = frozenset[str]().union(*(unit.choices for unit in units))
        while units := [unit for unit in units if splits[unit.rows[0]] != "train"]:
            # Few samples of a label are not parted further.
            lacking = sum(not counts[split][name] for split in choices) if least[name] == MIN_TRAIN else 0
            if counts["train"][name] >= least[name] + lacking:
                break
            unit = max(units, key=lambda unit: counts[str(splits[unit.rows[0]])][name])
            split = str(splits[unit.rows[0]])
            if counts["train"][name] >= least[name] and counts[split][name] == unit.classes[name]:
                break
            put(unit.rows, "train", splits)
            counts[split].subtract(unit.classes)
            counts["train"].update(unit.classes)


def _too_small(counts: Mapping[ClassName, int]) -> list[str]:
    """A warning about the classes that stay in train, given with their numbers of samples; none if there are none."""
    shown = [(f"{name!r} of {target}", counted(count, "sample")) for (target, name), count in list(counts.items())[:MAX_SHOWN]]
    if len(counts) == 1:
        return [f"class {shown[0][0]} is too small to be split ({shown[0][1]}): all of it stays in train"]
    examples = ", ".join(f"{name} ({count})" for name, count in shown)
    return [f"{len(counts)} classes are too small to be split: all of them stay in train, e.g. {examples}"] if counts else []


def _cover_classes(
    free: Sequence[Unit], splits: list[str | None], counts: Mapping[str, Counter[ClassName]], least: Mapping[ClassName, int]
) -> None:
    """Give a carved split one unit of each class that chance left out of it, if train can spare it; `counts` follow."""
    spare: dict[ClassName, list[Unit]] = defaultdict(list)
    for unit in by_share(unit for unit in free if splits[unit.rows[0]] == "train" and unit.choices):
        for name in unit.classes:
            spare[name].append(unit)
    for split in ("test", "val"):
        for name in sorted(spare):
            if counts[split][name] or least[name] < MIN_TRAIN:
                continue
            for unit in spare[name]:
                left = counts["train"]
                if (
                    splits[unit.rows[0]] == "train"
                    and split in unit.choices
                    and all(left[other] - lost >= least[other] for other, lost in unit.classes.items())
                ):
                    put(unit.rows, split, splits)
                    counts["train"].subtract(unit.classes)
                    counts[split].update(unit.classes)
                    break
