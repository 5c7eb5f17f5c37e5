"""The data stage: the data version to train on, after new samples of a source were brought in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows.errors import AskedWrongly
from flows.records import DataVersion
from flows.settings import Settings
from flows.stages.session import RetrainingSession
from flows.words import counted, short

# Of the samples set aside: a table in the data folder has all.
MAX_SHOWN = 5
# More objects than these are not listed before a training: a reader that misses one says so then.
MOST_LISTED = 200_000
LOST = "the data version that data.dvc named could not be had here; the new one holds this source alone"


@dataclass(frozen=True)
class Quarantined:
    """A sample that was set aside, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Ingested:
    """What an ingest did, in numbers of samples, and the data version that it made, by digest and git revision.

    `absent` samples of earlier ingests are not in the source and stay, as they would not in a mirror.
    """

    added: int
    updated: int
    removed: int
    unchanged: int
    quarantined: tuple[Quarantined, ...]
    warnings: tuple[str, ...]
    samples: int
    data_version: str
    revision: str
    absent: int

    def tell_warnings(self) -> Iterator[str]:
        """What a person should know of it: the warnings, and the first samples that were set aside, and how many more were."""
        yield from self.warnings
        yield from (f"set aside {bad.file}: {bad.reason}" for bad in self.quarantined[:MAX_SHOWN])
        if more := len(self.quarantined[MAX_SHOWN:]):
            yield f"{more} more were set aside: data/quarantine.csv lists all {len(self.quarantined)}"

    def tell_changes(self, source: str) -> Iterator[str]:
        """What it changed, and what stays that the source lacks."""
        yield f"{source}: " + ", ".join(f"{getattr(self, what)} {what}" for what in ("added", "updated", "removed", "unchanged"))
        if self.absent:
            lacking = counted(self.absent, "sample of the data version is", "samples of the data version are")
            yield f"{lacking} not in this source and stay; `headstart data ingest --mirror` would remove them"


def ingest(
    settings: Settings,
    source: str,
    *,
    mirror: bool = False,
    max_removed_share: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """Bring a source in: what changed, and the data version that it made.

    `max_removed_share` is the share of samples that a mirror may remove; None means its usual limit.
    """
    from flows import dataset, landing

    workspace = dataset.open_workspace(settings.workspace)
    dataset.check_ready(workspace)
    # After a git clone or pull, `data/` may not hold what `data.dvc` names: the new samples must be added to the latter.
    pointer = workspace / "data.dvc"
    before = pointer.read_text() if pointer.exists() and not dataset.restore(workspace) else None
    admit = partial(dataset.check_names, workspace)
    own = [settings.storage, *([settings.features] if isinstance(settings.features, Path) else [])]
    report = landing.ingest(
        source,
        workspace / "data",
        mirror=mirror,
        max_removed_share=landing.MAX_REMOVED_SHARE if max_removed_share is None else max_removed_share,
        own=own,
        on_progress=on_progress,
        admit=admit,
        # Of a version whose manifest is not on this machine nobody knows.
        was_judged=lambda: any(not v.splits or v.splits.get("val") or v.splits.get("test") for v in dataset.history(workspace)),
    )
    version = dataset.record_version(workspace, f"Data from {source}")
    lost = before is not None and pointer.read_text() != before
    return Ingested(
        added=report.added,
        updated=report.updated,
        removed=report.removed,
        unchanged=report.unchanged,
        quarantined=tuple(Quarantined(file, reason) for file, reason in report.quarantined),
        warnings=(*report.warnings, *([LOST] if lost else [])),
        samples=len(version.samples),
        data_version=version.digest,
        revision=version.revision,
        absent=report.absent,
    )


def version_data(session: RetrainingSession, source: str | None) -> DataVersion:
    """The workspace's data version, after new samples of `source` were brought in."""
    from flows import dataset

    if source:
        ingested = ingest(session.settings, source)
        for line in (*(f"Warning: {warning}" for warning in ingested.tell_warnings()), *ingested.tell_changes(source)):
            session.say(line)
    version = dataset.read_version(session.settings.workspace)
    if session.settings.ray_address:
        check_remote_holds(version)
    session.say(f"Data version {short(version.digest)}: {counted(len(version.samples), 'sample')}")
    return version


def check_remote_holds(version: DataVersion) -> None:
    """Check by its listing that a remote in an object store has all files of the version, which workers may read from there.

    Raises AskedWrongly if it lacks one, or cannot be listed. A version of more than MOST_LISTED files is not looked through.
    """
    from flows import dataset, objects
    from flows.sample_files import files_of

    names = {digest: file for file, digest in files_of(version, version.samples)}
    if version.remote is None:
        return
    dataset.check_remote(version.remote)
    if len(names) > MOST_LISTED:
        return
    if missing := objects.find_missing(version.remote, names):
        raise AskedWrongly(
            f"the data remote {version.remote.address} lacks {counted(len(missing), 'file')} of data version {version.digest}, "
            f"e.g. {names[missing[0]]} (md5 {missing[0]}), and workers on other machines read from there: run `dvc push` in the "
            "workspace, or `headstart data ingest SOURCE` with the source it came from"
        )
