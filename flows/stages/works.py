"""Care of the finished works: how many there are and who needs them, and the removal of those that nothing needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flows import dataset
from flows.errors import Busy
from flows.settings import Settings
from flows.stages.session import at_work, open_registry
from flows.stages.stored_works import StoredWork, bytes_stored, read_works, remove_work, sweep_removed
from flows.words import counted
from flows.work_folder import works_root


@dataclass(frozen=True)
class WorksStatus:
    """The works under a storage root: how many came how far, their bytes, and how many are needed by what.

    `of_data_version` counts those of the workspace's `data_version`, `in_use` those of versions in the registry that have an
    alias or wait for approval, `unlogged` the ended ones of retrainings that did not end, `prunable` what is none of these.
    """

    root: str
    finished: int
    failed: int
    unfinished: int
    bytes: int
    data_version: str
    of_data_version: int
    in_use: int
    unlogged: int
    prunable: int
    prunable_bytes: int


@dataclass(frozen=True)
class PrunedWorks:
    """How many works were removed, or would be in a `dry_run`, with their bytes, and the bytes that are left."""

    root: str
    dry_run: bool
    removed: int
    freed_bytes: int
    bytes: int


@dataclass(frozen=True)
class _Needs:
    """What works are needed for: the data version of the workspace, and the keys of those that the registry points at."""

    data_version: str
    in_use: frozenset[str]

    def allow(self, work: StoredWork, *, unlogged: bool = False) -> bool:
        """Whether nothing needs the work, or only MLflow would, if `unlogged`; of one that no job here tells of nobody knows."""
        if work.data_version in (self.data_version, None) or work.key in self.in_use:
            return False
        return work.state == "unfinished" or work.is_logged or unlogged


def works_status(settings: Settings) -> WorksStatus:
    """The works of the storage root; changes nothing. Raises as `prune_works` does, but not beside a retraining."""
    needs, stored = _needs(settings), read_works(settings.root)
    works = stored.works
    prunable = [work for work in works if needs.allow(work)]
    states = [work.state for work in works]
    return WorksStatus(
        root=works_root(settings.root).address,
        finished=states.count("finished"),
        failed=states.count("failed"),
        unfinished=states.count("unfinished"),
        bytes=stored.num_bytes,
        data_version=needs.data_version,
        of_data_version=sum(work.data_version == needs.data_version for work in works),
        in_use=sum(work.key in needs.in_use for work in works),
        unlogged=sum(work.state != "unfinished" and not work.is_logged for work in works),
        prunable=len(prunable),
        prunable_bytes=sum(work.num_bytes for work in prunable),
    )


def prune_works(settings: Settings, older_than_seconds: float, *, unlogged: bool = False, dry_run: bool = False) -> PrunedWorks:
    """Remove the works that nothing needs and that ended, or were last written to, longer ago than that.

    If `unlogged`, those of retrainings that did not end as well, which MLflow may lack.

    Raises Busy while a retraining runs on this storage, Unreachable if the registry does not answer, AskedWrongly if the
    workspace has no data version: then it is not known what is needed.
    """
    _refuse_beside_retraining(settings)
    needs, stored = _needs(settings), read_works(settings.root)
    latest = time.time() - older_than_seconds
    old = [work for work in stored.works if needs.allow(work, unlogged=unlogged) and work.written_at < latest]
    freed = sum(work.num_bytes for work in old)
    if not dry_run:
        _remove(settings, old)
        freed = stored.num_bytes - bytes_stored(settings.root)
    return PrunedWorks(works_root(settings.root).address, dry_run, len(old), freed, stored.num_bytes - freed)


def _remove(settings: Settings, works: Sequence[StoredWork]) -> None:
    sweep_removed(settings.root)
    for number, work in enumerate(works):
        # One that begins meanwhile may have other data, and so need other works.
        _refuse_beside_retraining(settings, number)
        remove_work(settings.root, work.key)


def _refuse_beside_retraining(settings: Settings, num_removed: int = 0) -> None:
    if holder := at_work(settings):
        done = f", {counted(num_removed, 'work')} removed until then" if num_removed else ""
        raise Busy(f"a retraining is at work ({holder}) and may need any work{done}; wait until it ends, then run this again")


def _needs(settings: Settings) -> _Needs:
    in_use = frozenset(open_registry(settings).works_in_use())
    return _Needs(dataset.read_version(settings.workspace).digest, in_use)
