"""Which columns name classes, and which ids, such as of a patient or a series, that have no say in the splits. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from flows.landing.split_units import MIN_TRAIN, ClassName, Unsettled
from flows.landing.splits import lacking_splits, may_be_carved
from flows.manifest import is_mask_target, is_tags_target
from flows.records import Sample
from flows.words import counted
from heads.tasks.names import split_labels

# Rare classes beside common ones are a long tail; ids are nearly all rare.
IDS_SHARE = 0.9


def tells_masks_or_tags(samples: Sequence[Sample], target: str) -> bool:
    """Whether a target's cells are masks, or tags of words."""
    return is_mask_target(samples, target) or is_tags_target(samples, target)


def names_classes(samples: Sequence[Sample], target: str) -> bool:
    """Whether a target's cells look like classes or sets of labels: not masks or tags, and mostly no texts of their own.

    Such texts are notes or ids. Of a set each label counts: sets of many labels mostly differ.
    """
    if tells_masks_or_tags(samples, target):
        return False
    names = [name for sample in samples if (cell := sample.labels[target]) is not None for name in split_labels(cell)]
    return len(set(names)) <= 20 or len(set(names)) <= len(names) / 2


def names_sets(samples: Sequence[Sample], target: str) -> bool:
    """Whether a target's cells look like sets of labels: some name several."""
    return names_classes(samples, target) and any("|" in (sample.labels[target] or "") for sample in samples)


def leave_out_ids(
    rows: Sequence[Unsettled], *, others: bool, told: Collection[str]
) -> tuple[Sequence[Unsettled], tuple[str, ...]]:
    """The rows without the classes of columns that look like ids, and a warning about those of them that are `told` of.

    Such a column has nearly all of its samples, and most of those still to be carved, in classes too small to be split. Where
    all columns are such, they stay, unless there are `others`, of masks or tags.
    """
    lacking = lacking_splits(rows)
    to_carve = [row for row in rows if may_be_carved(row, lacking)]
    sizes = Counter(name for row in rows if row.given not in ("val", "test") for name in row.classes)
    small = {name for name, size in sizes.items() if size < MIN_TRAIN + max(1, len(lacking))}
    labelled, in_small = (_by_target({name: sizes[name] for name in names}) for names in (sizes, small))
    held = Counter(target for row in to_carve for target in {target for target, _ in row.classes & small})
    ids = [t for t in sorted(labelled) if in_small[t] > IDS_SHARE * labelled[t] and 2 * held[t] > len(to_carve)]
    if not ids or (len(ids) == len(labelled) and not others):
        return rows, ()
    kept = [replace(row, classes=frozenset(name for name in row.classes if name[0] not in ids)) for row in rows]
    names = _by_target(dict.fromkeys(sizes, 1))
    named = [f"{target} ({names[target]} in {counted(labelled[target], 'sample')})" for target in ids if target in told]
    what = "looks like a column of ids" if len(named) == 1 else "look like columns of ids"
    words = (
        f"{', '.join(named)} {what}, too small to be split, and has no say in the splits, which are for good: if samples of one "
        "id were taken together, ingest into a new workspace with the column called 'group', which keeps them in one split; if "
        "it is nothing to learn, leave it out of the table"
    )
    return kept, (words,) if named else ()


def _by_target(counts: Mapping[ClassName, int]) -> Counter[str]:
    sums = Counter[str]()
    for (target, _), count in counts.items():
        sums[target] += count
    return sums
