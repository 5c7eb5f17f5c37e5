"""Brings a source into `data/`: fetch new files, decode each once, quarantine the bad, settle splits, write the manifest."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly
from flows.landing.arrivals import Arrival, Progress, receive
from flows.landing.bucket import fetch
from flows.landing.digits import digits
from flows.landing.earlier import read_earlier
from flows.landing.entries import Entry, Listing
from flows.landing.layouts import UNDERSTOOD, scan
from flows.landing.merge import count_absent, merge, refuse_removing, tally
from flows.landing.placing import Move, forget_arriving, quarantine_text, quarantined
from flows.landing.recipes import settle_recipes
from flows.manifest import IMAGES, MASK_TABLE, NAME, TEXTS, class_counts, mask_files, modality_in
from flows.records import Sample
from flows.workspace import writing
from heads.tasks.bio import is_cell, read_cell, types_in

MAX_BAD_SHARE = 0.05
MAX_REMOVED_SHARE = 0.1


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest, in numbers of samples; `quarantined` has (file, reason) of each sample left out.

    `absent` samples of earlier ingests are not in the source and stay, as they would not in a mirror; it is 0 if the source has
    none of the earlier samples, as another source has not.
    """

    added: int
    updated: int
    removed: int
    unchanged: int
    quarantined: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    num_samples: int
    absent: int = 0


def ingest(
    source: str | Path,
    data: Path,
    *,
    mirror: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    max_removed_share: float = MAX_REMOVED_SHARE,
    own: Sequence[Path] = (),
    on_progress: Progress | None = None,
    admit: Callable[[Iterable[str]], None] | None = None,
    was_judged: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Bring `source` into `data`: a folder, `s3://bucket/prefix` or `digits`; files in `data` or in `own` are no part of it.

    `on_progress` gets the numbers of samples (done, all). `admit` gets the names of all files that `data` will hold, before
    any is moved in, and may raise. `was_judged` tells whether any version before had samples in val or test: if none had, splits
    are carved anew. Raises AskedWrongly, with `data` as it was, on a source that is missing, unreadable, empty,
    of an unknown layout, of one class only or with too many bad samples; if a mirror would remove more than `max_removed_share`
    of the samples; and if a file in `data` is in the way that no ingest brought. Raises Busy while another writer holds the
    workspace.
    """
    data = data.absolute()
    with writing(data.parent) as storage:
        incoming = storage / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            listing = _list(source, storage, (data, storage, *own))
            earlier = read_earlier(data, storage)
            _refuse_other_modality(earlier.samples, listing.entries)
            arrivals = receive(listing.entries, data, incoming, earlier, on_progress)
            _refuse_bad(arrivals, max_bad_share)
            merged, notes = merge(earlier.samples, arrivals, mirror, was_judged)
            _refuse_one_class(arrivals, merged)
            samples, masks, recipe_warnings = settle_recipes(merged, earlier, arrivals, data)
            if mirror and max_removed_share < 1:
                refuse_removing(earlier.samples, samples, listing.empty, max_removed_share)
            report = _report(earlier.samples, samples, arrivals, (*listing.warnings, *notes, *recipe_warnings))
            named = [sample.file for sample in samples] + sorted(mask_files(samples))
            if admit:
                admit([NAME, *([MASK_TABLE] if mask_files(samples) else []), *named])
            move = Move(data, incoming, earlier, samples, masks, _quarantine(data, arrivals, mirror))
            move.refuse_strangers()
            move.carry_out(storage)
            if mirror:
                move.sweep({*named})
            forget_arriving(storage)
            return report
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _report(
    earlier: Sequence[Sample], samples: Sequence[Sample], arrivals: Sequence[Arrival], warnings: tuple[str, ...]
) -> IngestReport:
    bad = tuple((_printable(_plain(a.entry)), a.fault) for a in arrivals if a.fault)
    return IngestReport(
        **tally(earlier, samples, arrivals),
        quarantined=bad,
        warnings=warnings,
        num_samples=len(samples),
        absent=count_absent(earlier, samples, arrivals),
    )


def _list(source: str | Path, storage: Path, own: Sequence[Path]) -> Listing:
    if source == "digits":
        return digits()
    if isinstance(source, str) and source.startswith("s3://"):
        return _list_bucket(source, storage)
    folder = Path(source).expanduser().absolute()
    for inside in own[:2]:
        if folder.resolve().is_relative_to(inside.resolve()):
            raise AskedWrongly(
                f"source {str(source)!r} lies in the workspace's own folder {inside}; give the folder that new samples land in"
            )
    return scan(folder, own)


def _list_bucket(source: str, storage: Path) -> Listing:
    fetched = fetch(source, storage / "sources")
    try:
        listing = scan(fetched.folder)
    except AskedWrongly as error:
        raise AskedWrongly(str(error).replace(str(fetched.folder), source)) from None
    return Listing(listing.entries, (*fetched.warnings, *listing.warnings), listing.empty)


def _refuse_other_modality(earlier: Sequence[Sample], entries: Sequence[Entry]) -> None:
    before, now = (modality_in(files) for files in ([s.file for s in earlier], [entry.file for entry in entries]))
    if earlier and entries and before != now:
        raise AskedWrongly(
            f"the source holds {now}s, and the workspace's data {before}s: a data set is of one kind. Make another workspace "
            "for them with `headstart init DIR`. Nothing was changed"
        )


def _refuse_bad(arrivals: Sequence[Arrival], max_bad_share: float) -> None:
    bad = [arrival for arrival in arrivals if arrival.fault]
    if len(bad) > max_bad_share * len(arrivals):
        names: dict[str, list[str]] = defaultdict(list)
        for arrival in bad:
            names[str(arrival.fault)].append(_printable(_plain(arrival.entry)))
        told = [f"{of[0]}: {fault}{f' (and {len(of) - 1} more)' if len(of) > 1 else ''}" for fault, of in names.items()]
        shown = "; ".join([*told[:5], *(["..."] if len(told) > 5 else [])])
        raise AskedWrongly(
            f"{len(bad)} of {len(arrivals)} {modality_in([bad[0].entry.file])}s are bad ({len(bad) / len(arrivals):.1%}), "
            f"more than the {max_bad_share:.0%} allowed; nothing was changed. {shown}"
        )


def _refuse_one_class(arrivals: Sequence[Arrival], samples: Sequence[Sample]) -> None:
    """Refuse a source of one class, or without a span, unless others are already known, or the source brings masks."""
    good = [arrival.entry for arrival in arrivals if not arrival.fault]
    if any(entry.masks for entry in good):
        return
    classes: dict[str, set[str]] = defaultdict(set)
    for entry in good:
        for target, label in entry.labels.items():
            classes[target] |= {label} if label else set()
    known = class_counts(samples)
    tagged = [cell for names in classes.values() for cell in names if is_cell(cell)]
    if any(types_in(read_cell(cell)) for cell in tagged):
        return
    if tagged:
        raise AskedWrongly(
            f"the source marks no span: the tags of all of its {len(good)} sentences are O; tag some words as B-<type>"
        )
    if all(len(names) < 2 and len(known.get(target, ())) < 2 for target, names in classes.items()):
        held = "; ".join(f"{target}: {', '.join(sorted(names)) or 'no label'}" for target, names in sorted(classes.items()))
        raise AskedWrongly(f"the source holds one class only ({held}); at least two are needed to learn from. {UNDERSTOOD}")


def _plain(entry: Entry) -> str:
    return entry.file.removeprefix(IMAGES).removeprefix(TEXTS)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _quarantine(data: Path, arrivals: Sequence[Arrival], mirror: bool) -> str:
    """The quarantine list as text: this source's bad samples, and those of earlier sources that it does not list; '' if none."""
    rows = {_printable(a.entry.file): (a.digest, a.fault) for a in arrivals if a.fault is not None}
    listed = {_printable(arrival.entry.file) for arrival in arrivals}
    old = {} if mirror else {file: row for file, row in (quarantined(data) or {}).items() if file not in listed}
    return quarantine_text({**old, **rows})
