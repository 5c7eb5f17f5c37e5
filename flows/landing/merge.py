"""The samples of the manifest after an ingest: earlier samples and arrivals merged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from textwrap import shorten

from flows.errors import AskedWrongly
from flows.landing.arrivals import Arrival
from flows.landing.ids import leave_out_ids, names_classes, names_sets, tells_masks_or_tags
from flows.landing.split_units import ClassName, Unsettled
from flows.landing.splits import settle
from flows.landing.vanished_classes import vanished
from flows.manifest import FOLDER_OF, MASKS
from flows.records import SPLITS, Sample
from flows.words import counted
from heads.tasks.names import split_labels

# Of a label in a warning: tags of a long sentence would fill the screen.
MAX_SHOWN_CHARS = 60


def merge(
    earlier: Sequence[Sample], arrivals: Sequence[Arrival], mirror: bool, was_judged: Callable[[], bool] = lambda: False
) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples after the ingest, with their splits settled, and warnings.

    `was_judged` tells whether any version had samples to judge by, and is asked only if those of `earlier` are all in train.
    """
    before = {sample.file: sample for sample in earlier}
    listed = {arrival.entry.file for arrival in arrivals}
    good = [arrival for arrival in arrivals if not arrival.fault]
    replaced = {arrival.entry.file for arrival in good}
    kept = [s for s in earlier if s.file not in replaced and (not mirror or s.file in listed)]
    labels = [_labels(arrival, before.get(arrival.entry.file)) for arrival in good]
    targets = tuple(dict.fromkeys(t for cells in (*(s.labels for s in kept), *labels) for t in cells))
    # Earlier columns first, whatever order the rows come in.
    targets = tuple(dict.fromkeys((*(earlier[0].labels if earlier else ()), *targets)))
    drafts = [replace(s, labels={t: s.labels.get(t) for t in targets}) for s in kept]
    for arrival, cells in zip(good, labels, strict=True):
        entry, old = arrival.entry, before.get(arrival.entry.file)
        group = entry.group or (old.group if old and old.digest == arrival.digest else None)
        labelled = {t: cells.get(t) for t in targets}
        drafts.append(Sample(arrival.digest, entry.file, "", labelled, group, arrival.recipe))
    given_splits = [None] * len(kept) + [arrival.entry.split for arrival in good]
    given = {split for split in given_splits if split in ("val", "test")}
    if earlier and not any(sample.split in ("val", "test") for sample in earlier) and not was_judged():
        # Nothing was judged by these splits, so they are carved again. Those of samples that are not listed may have been given.
        stay: Sequence[Sample] = kept if given else ()
    else:
        # In a mirror the source alone decides the splits that it gives.
        stay = [sample for sample in earlier if not mirror or sample.split not in given]
    brought = {target for arrival in good for target in arrival.entry.labels}
    rows, ids = leave_out_ids(
        _unsettled(drafts, given_splits, stay), others=any(tells_masks_or_tags(drafts, t) for t in targets), told=brought
    )
    splits, warnings = settle(rows, {t for t in targets if names_sets(drafts, t)})
    samples = [replace(draft, split=split) for draft, split in zip(drafts, splits, strict=True)]
    told = (*ids, *warnings, *_seen(stay, samples), *vanished(earlier, samples), *_contradictions(samples))
    return sorted(samples, key=lambda sample: sample.file), told


def _labels(arrival: Arrival, before: Sample | None) -> dict[str, str | None]:
    """The cells that the source gives; other cells stay as they were, if the sample has the same bytes."""
    cells: dict[str, str | None] = dict(before.labels) if before and before.digest == arrival.digest else {}
    masks = {target: mask.file if mask else None for target, mask in arrival.entry.masks.items()}
    return cells | dict(arrival.entry.labels) | masks


def _unsettled(drafts: Sequence[Sample], given_splits: Sequence[str | None], stay: Sequence[Sample]) -> list[Unsettled]:
    # Where the same bytes lie in two splits, the holdout claims them.
    by_digest = {s.digest: s.split for s in sorted(stay, key=lambda sample: SPLITS.index(sample.split))}
    by_file = {s.file: s.split for s in stay}
    targets = [target for target in (drafts[0].labels if drafts else ()) if names_classes(drafts, target)]
    before = [by_digest.get(draft.digest) or by_file.get(draft.file) for draft in drafts]
    return [
        Unsettled(draft.digest, split, earlier_split, draft.group, _classes(draft, targets))
        for draft, split, earlier_split in zip(drafts, given_splits, before, strict=True)
    ]


def _classes(sample: Sample, targets: Iterable[str]) -> frozenset[ClassName]:
    return frozenset((t, name) for t in targets if (cell := sample.labels[t]) is not None for name in split_labels(cell))


def _seen(earlier: Sequence[Sample], samples: Sequence[Sample]) -> tuple[str, ...]:
    """A warning if samples that were learned from are held out from now on."""
    trained = {sample.digest for sample in earlier if sample.split == "train"}
    num = len({sample.digest for sample in samples if sample.split == "test" and sample.digest in trained})
    if not num:
        return ()
    return (
        f"{counted(num, 'sample was', 'samples were')} in train and {'is' if num == 1 else 'are'} in test from now on: a "
        "champion that was trained before has seen them, and looks better on the holdout than it is",
    )


def _contradictions(samples: Sequence[Sample]) -> tuple[str, ...]:
    seen: dict[tuple[str, str], Sample] = {}
    contradictions = []
    for sample in samples:
        for target, label in sample.labels.items():
            first = seen.setdefault((target, sample.digest), sample)
            if label and first.labels[target] and label != first.labels[target] and not label.startswith(MASKS):
                labels = (shorten(cell, MAX_SHOWN_CHARS, placeholder=" ...") for cell in (first.labels[target] or "", label))
                contradictions.append(f"{first.file} ({next(labels)}) and {sample.file} ({next(labels)})")
    have = counted(len(contradictions), "sample has", "samples have")
    return (f"{have} the bytes of another one but a different label, e.g. {contradictions[0]}",) if contradictions else ()


def tally(earlier: Sequence[Sample], samples: Sequence[Sample], arrivals: Sequence[Arrival]) -> Mapping[str, int]:
    """How many samples were added, updated, removed and unchanged."""
    before, after = {s.file: s for s in earlier}, {s.file: s for s in samples}
    touched = {arrival.entry.file for arrival in arrivals if arrival.changed}
    kind = Counter(
        "added" if file not in before else "updated" if file in touched or not _same(before[file], sample) else "unchanged"
        for file, sample in after.items()
    )
    gone = len(before.keys() - after.keys())
    return {"added": kind["added"], "updated": kind["updated"], "removed": gone, "unchanged": kind["unchanged"]}


def count_absent(earlier: Sequence[Sample], samples: Sequence[Sample], arrivals: Sequence[Arrival]) -> int:
    """How many samples of earlier ingests stay though the source lacks them; 0 if it has none of them, as another source."""
    before, listed = {sample.file for sample in earlier}, {arrival.entry.file for arrival in arrivals}
    kept = before & {sample.file for sample in samples}
    return len(kept - listed) if before & listed else 0


def _same(one: Sample, other: Sample) -> bool:
    """Whether two samples are equal; a column that one of them lacks counts as empty."""
    filled = [{target: label for target, label in sample.labels.items() if label} for sample in (one, other)]
    said = [(sample.digest, sample.split, sample.group, sample.recipe) for sample in (one, other)]
    return said[0] == said[1] and filled[0] == filled[1]


def refuse_removing(earlier: Sequence[Sample], samples: Sequence[Sample], empty: Sequence[PurePosixPath], most: float) -> None:
    """Raise AskedWrongly if a mirror would remove more than a share of the samples, or those of a folder that is now empty."""
    kept = {sample.file for sample in samples}
    gone = [sample.file for sample in earlier if sample.file not in kept]
    allow = "If they are meant to go, run this again with --max-removed-share 1. Nothing was changed"
    for folder in empty:
        places = tuple(f"{kept_in}{folder.as_posix().removeprefix(kept_in)}/" for kept_in in FOLDER_OF.values())
        under = [file for file in gone if file.startswith(places)]
        if under:
            raise AskedWrongly(
                f"nothing lies at {str(folder)!r} in the source any more, as where a disk is not mounted, and "
                f"{len(under)} samples came from there. {allow}"
            )
    if len(gone) > most * len(earlier):
        raise AskedWrongly(
            f"the mirror would remove {len(gone)} of {len(earlier)} samples ({len(gone) / len(earlier):.1%}), more than the "
            f"{most:.0%} allowed, e.g. {gone[0]}. {allow}"
        )
