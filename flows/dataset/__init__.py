"""Data versions: `data/` kept by DVC, pushed to its remote, and named by git commits of `data.dvc`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.dataset.pointer import parse_pointer
from flows.dataset.readiness import check_names, check_ready, refuse_ignored
from flows.dataset.remotes import RemoteStatus, check_remote, parse_remote, read_remote, set_remote
from flows.dataset.revisions import (
    DATA_FILE,
    check_repository,
    commit,
    committed_text,
    head_commit,
    holder,
    pointer_text,
    resolve,
    revisions,
)
from flows.dataset.setup import init_workspace
from flows.dataset.store import Store, open_store
from flows.dataset.unsaved import refuse_unsaved
from flows.errors import AskedWrongly, Busy, HeadstartError
from flows.files import undone_on_failure, write_whole
from flows.manifest import MASK_TABLE, NAME, class_counts, split_counts
from flows.records import DataVersion, Sample
from flows.workspace import DATA, md5_of, writing

__all__ = [
    "RemoteStatus",
    "Status",
    "VersionRecord",
    "check_names",
    "check_ready",
    "check_remote",
    "check_repository",
    "checkout",
    "head_commit",
    "history",
    "init_workspace",
    "open_workspace",
    "parse_remote",
    "read_remote",
    "read_version",
    "record_version",
    "restore",
    "set_remote",
    "status",
]

_MIN_DIGEST = 7
_NO_DATA = "bring some in with `headstart data ingest SOURCE`"


@dataclass(frozen=True)
class VersionRecord:
    """A version in the history; `splits` (samples by split) is empty if its manifest is not on this machine."""

    digest: str
    revision: str
    date: str
    message: str
    num_files: int
    splits: Mapping[str, int]


@dataclass(frozen=True)
class Status:
    """The workspace's version, whether `data/` differs from it, and its numbers of samples by split and by class."""

    version: DataVersion
    dirty: bool
    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, Mapping[str, int]]]


def open_workspace(folder: Path) -> Path:
    """The workspace at `folder`, absolute. Raises AskedWrongly if it is none."""
    folder = folder.absolute()
    if not (folder / ".dvc").is_dir() or not (folder / ".git").exists():
        raise AskedWrongly(f"{folder} is no workspace (git with DVC in it); make one with `headstart init {folder}`")
    return folder


def record_version(workspace: Path, message: str) -> DataVersion:
    """Make a version of `data/`: add it to DVC, push it to the remote, and commit `data.dvc`, in that order.

    If `data/` equals HEAD's version, nothing is committed, but its objects are in the cache and on the remote all the same.
    Raises AskedWrongly without data, HeadstartError if `data/` contradicts its manifest, or the push or the commit fails;
    then `data.dvc` is as it was.
    """
    workspace = open_workspace(workspace)
    if not (workspace / DATA / NAME).exists():
        raise AskedWrongly(f"{workspace / DATA} holds no {NAME}; {_NO_DATA}")
    ignore = workspace / ".gitignore"
    with writing(workspace):
        ignored = ignore.read_bytes() if ignore.exists() else b""
        store = open_store(workspace)
        with undone_on_failure(workspace / DATA_FILE):
            if not (_is_committed(workspace) and store.is_settled()):
                store.add()
                _check_manifest(store)
                store.push()
                store.pack()
            if not _is_committed(workspace):
                # DVC adds `data/` to .gitignore if it is not there yet.
                touched = ignore.exists() and ignore.read_bytes() != ignored
                commit(workspace, [DATA_FILE, *([".gitignore"] if touched else [])], message)
    return read_version(workspace)


def read_version(workspace: Path) -> DataVersion:
    """The version that `data.dvc` names, with its samples read from the DVC cache or remote, since `data/` may have changed.

    Raises AskedWrongly if there is no data yet, no commit holds this `data.dvc`, or its objects are not on this machine.
    """
    workspace = open_workspace(workspace)
    pointer = workspace / DATA_FILE
    if not pointer.exists():
        raise AskedWrongly(f"{workspace} has no data ({DATA_FILE} is missing); {_NO_DATA}")
    store = open_store(workspace)
    digest = store.pointer.digest
    samples = store.samples(digest)
    revision = holder(workspace)
    if revision is None:
        raise AskedWrongly(
            f"no commit holds {pointer} as it stands, so nothing made from it could be traced; commit it "
            f"(`cd {shlex.quote(str(workspace))} && git add {DATA_FILE} && git commit -m Data {DATA_FILE}`), "
            "or go back to the last one that is (`headstart data checkout HEAD`)"
        )
    return DataVersion(digest, revision, samples, workspace / DATA, store.folders, store.masks(digest), store.bucket)


def read_samples(workspace: Path, digest: str) -> tuple[Sample, ...]:
    """The samples of a data version. Raises AskedWrongly if its manifest is not on this machine."""
    return open_store(open_workspace(workspace)).samples(digest)


def history(workspace: Path) -> list[VersionRecord]:
    """The versions on HEAD's history, newest first."""
    workspace = open_workspace(workspace)
    store = open_store(workspace)
    records = []
    for revision in revisions(workspace):
        pointer = parse_pointer(revision.text, f"{DATA_FILE} at {revision.name}")
        splits = _splits(store, pointer.digest)
        records.append(VersionRecord(pointer.digest, revision.name, revision.date, revision.message, pointer.num_files, splits))
    return records


def checkout(workspace: Path, revision: str) -> DataVersion:
    """Put the version at a git revision, or of a digest in the history, into `data/` and `data.dvc`; commits nothing.

    Raises AskedWrongly if the revision does not exist or holds no data, or `data/` has changes that no version holds;
    HeadstartError if the objects cannot be fetched. Then everything is as it was.
    """
    workspace = open_workspace(workspace)
    versions = revisions(workspace) if len(revision) >= _MIN_DIGEST else []
    name = next((v.name for v in versions if parse_pointer(v.text, v.name).digest.startswith(revision)), None)
    name = name or resolve(workspace, revision)
    text = committed_text(workspace, name)
    if text is None:
        raise AskedWrongly(f"revision {revision!r} has no {DATA_FILE}; `headstart data history` lists those that do")
    with writing(workspace):
        store = open_store(workspace)
        if (workspace / DATA).exists() and store.is_dirty():
            refuse_unsaved(store)
        with undone_on_failure(workspace / DATA_FILE):
            write_whole(workspace / DATA_FILE, text)
            store.bring()
    return read_version(workspace)


def restore(workspace: Path) -> bool:
    """Make `data/` fit for new samples: it must hold the version of `data.dvc`, or changes made on top of a version.

    If it is missing (a fresh clone) or holds another recorded version (after a git pull), the version of `data.dvc` is
    fetched. Returns False if there is no version yet, or its objects cannot be fetched. Raises AskedWrongly if `data/` has
    files that no version holds, which would be lost.
    """
    workspace = open_workspace(workspace)
    copy = workspace / DATA / NAME
    if not (workspace / DATA_FILE).exists():
        return False
    store = open_store(workspace)
    if not store.is_within_reach():
        return copy.exists()
    if copy.exists() and not _is_another_version(store, _tables(copy.parent)):
        return True
    with writing(workspace):
        if copy.parent.exists():
            refuse_unsaved(store)
        try:
            store.bring()
        except Busy:
            raise
        except HeadstartError:
            return False
    return copy.exists()


def status(workspace: Path) -> Status:
    """The workspace's version, whether `data/` differs from it, and its counts. Raises as `read_version` does."""
    version = read_version(workspace)
    dirty = open_store(version.data.parent).is_dirty()
    return Status(version, dirty, split_counts(version.samples), class_counts(version.samples))


def _is_committed(workspace: Path) -> bool:
    return (workspace / DATA_FILE).exists() and committed_text(workspace) == pointer_text(workspace)


def _tables(data: Path) -> Mapping[str, str]:
    """The md5s of the tables in a data folder, by name."""
    return {name: md5_of(data / name) for name in (NAME, MASK_TABLE) if (data / name).exists()}


def _is_another_version(store: Store, tables: Mapping[str, str]) -> bool:
    """Whether tables with these md5s are those of a version in the history other than the one that `data.dvc` names."""
    if store.tables(store.pointer.digest) == tables:
        return False
    others = {parse_pointer(revision.text, revision.name).digest for revision in revisions(store.workspace)}
    return any(store.tables(digest) == tables for digest in others)


def _splits(store: Store, digest: str) -> Mapping[str, int]:
    try:
        return split_counts(store.samples(digest))
    except AskedWrongly:
        return {}


def _check_manifest(store: Store) -> None:
    """Raise HeadstartError if a file of `data/` is not the one that the tables list, since training would read other bytes."""
    digest = store.pointer.digest
    files = store.listing(digest)
    listed = {sample.file: sample.digest for sample in store.samples(digest)}
    listed |= {file: mask.digest for file, mask in store.masks(digest).items()}
    wrong = [file for file in listed if files.get(file) != listed[file]]
    refuse_ignored(store, [file for file in wrong if file not in files and (store.workspace / DATA / file).exists()])
    if wrong:
        raise HeadstartError(
            f"{len(wrong)} files of {store.workspace / DATA} are not what {NAME} and {MASK_TABLE} say, e.g. {wrong[0]}: they "
            f"were changed by hand or an ingest was cut short. Move those that were changed out of {store.workspace / DATA}, "
            "mend them at their source where they are to differ, and run `headstart data ingest SOURCE` again"
        )
