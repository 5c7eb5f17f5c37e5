"""The works under a storage root as values: how far each came, how large it is, which training it is of; and their removal."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from flows import job
from flows.places import Fact, Folder, Root, open_place
from flows.work_folder import BUNDLE, FAILURE, RESULT, works_root

State = Literal["finished", "failed", "unfinished"]
# Before the key of a work that is being removed, in the name of its folder; no key begins so.
REMOVED = ".removed-"
NUM_READERS = 8
TRAINING = re.compile(r"train-([0-9a-f]+)/job\.json")


@dataclass(frozen=True)
class StoredWork:
    """A work's folder: how far the work came, when it ended (else when its latest file was written), and its bytes.

    `data_version` is the digest of the data that it trains on, None if no job here tells it. `is_logged` says whether a
    retraining of it came to its end, so that MLflow has all of it.
    """

    key: str
    state: State
    written_at: float
    num_bytes: int
    data_version: str | None
    is_logged: bool


@dataclass(frozen=True)
class StoredWorks:
    """The works in the order of their keys, and all bytes in their folders and in what is left of removed ones."""

    works: tuple[StoredWork, ...]
    num_bytes: int


@dataclass(frozen=True)
class _Training:
    data_version: str
    is_logged: bool


def read_works(root: Root) -> StoredWorks:
    """The works of a storage root; a folder that no training made, and no result lies in, is none."""
    trainings, tree = _read_trainings(root), works_root(root).tree()
    works = []
    for key, files in sorted(_by_key(tree).items()):
        training = trainings.get(key)
        ends = {name: files[name] for name in (RESULT, FAILURE) if name in files}
        if key.startswith(REMOVED) or not (training or ends):
            continue
        works.append(
            StoredWork(
                key=key,
                state="finished" if RESULT in ends else "failed" if ends else "unfinished",
                written_at=max(fact.written_at for fact in (ends or files).values()),
                num_bytes=sum(fact.num_bytes for fact in files.values()),
                data_version=training.data_version if training else None,
                is_logged=training is not None and training.is_logged,
            )
        )
    return StoredWorks(tuple(works), sum(fact.num_bytes for fact in tree.values()))


def bytes_stored(root: Root) -> int:
    """The bytes of all works' folders, and of what is left of removed ones."""
    return sum(fact.num_bytes for fact in works_root(root).tree().values())


def remove_work(root: Root, key: str) -> None:
    """Remove a work's folder; killed half-way, it leaves no work that seems finished."""
    from heads import bundle

    works = works_root(root)
    folder = works.within(key)
    if isinstance(works, Folder):
        folder = works.within(f"{REMOVED}{key}")
        with suppress(FileNotFoundError):
            os.rename(works.path / key, folder.path)
    else:
        # In this order, as nothing is renamed there: without its end no work is finished, without its sums nothing a bundle.
        folder.remove(RESULT, FAILURE)
        folder.within(BUNDLE).remove(bundle.SUMS)
    folder.clear()


def sweep_removed(root: Root) -> None:
    """Remove what is left of works whose removal was cut short."""
    works = works_root(root)
    if isinstance(works, Folder):
        for left in works.path.glob(f"{REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)


def _by_key(tree: Mapping[str, Fact]) -> Mapping[str, Mapping[str, Fact]]:
    """The files of each folder, by their names in it."""
    found: dict[str, dict[str, Fact]] = {}
    for path, fact in tree.items():
        key, inner, name = path.partition("/")
        if inner:
            found.setdefault(key, {})[name] = fact
    return found


def _read_trainings(root: Root) -> Mapping[str, _Training]:
    """What the jobs of trainings tell of their works, by work key: jobs are kept, and so are the reports that end retrainings."""
    jobs, reports = job.jobs_root(root), open_place(root).within("retrainings").facts()
    keys = [match[1] for match in map(TRAINING.fullmatch, jobs.tree()) if match]
    found: dict[str, _Training] = {}
    # One after another they would take minutes in a bucket, after some years.
    with ThreadPoolExecutor(NUM_READERS) as pool:
        told = pool.map(lambda key: job.JobFolder(jobs.within(f"train-{key}")).read_fields(), keys)
        for key, fields in zip(keys, told, strict=True):
            if fields is None:
                continue
            for work in fields["works"]:
                before = found.get(work["key"])
                is_logged = f"{key}.json" in reports or (before is not None and before.is_logged)
                found[work["key"]] = _Training(fields["data"]["digest"], is_logged)
    return found
