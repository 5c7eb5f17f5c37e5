"""The feature store as people look after it: what it holds, whether it is whole, and how large it may be."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows import dataset
from flows.errors import Busy
from flows.settings import Settings
from flows.stages.session import RetrainingSession

# Of the room on its disk that nothing else takes, what the store may fill where no size is set.
SHARE_OF_DISK = 0.5


@dataclass(frozen=True)
class StoredTap:
    """One kind of a trunk's features: of how many samples, and how they lie in a row."""

    samples: int
    layout: str


@dataclass(frozen=True)
class StoredTrunk:
    """A trunk's features: what is known of the trunk (its backbone, image size, views and so on), and what is stored of it.

    `used_at` is in ISO format.
    """

    trunk_id: str
    about: Mapping[str, object]
    samples: int
    taps: Mapping[str, StoredTap]
    shards: int
    bytes: int
    used_at: str


@dataclass(frozen=True)
class FeaturesStatus:
    """The feature store: every trunk's features, the most recently used first, and how large it is and may be."""

    root: str
    trunks: tuple[StoredTrunk, ...]
    bytes: int
    max_bytes: int | None


@dataclass(frozen=True)
class DamagedShard:
    """A file of a trunk's features that is not what was written, and how that shows."""

    trunk_id: str
    shard: str
    reason: str


@dataclass(frozen=True)
class FeaturesCheck:
    """What reading every byte of the feature store found."""

    root: str
    shards: int
    bytes: int
    damaged: tuple[DamagedShard, ...]


@dataclass(frozen=True)
class Pruned:
    """What was removed from the feature store, and how many bytes are left."""

    root: str
    freed_shards: int
    freed_bytes: int
    bytes: int


def features_status(settings: Settings) -> FeaturesStatus:
    """What the feature store holds; changes nothing."""
    from heads.features import FeatureStore

    store = FeatureStore(_root(settings))
    trunks = tuple(
        StoredTrunk(
            trunk_id=each.trunk,
            about=store.description(each.trunk),
            samples=each.num_samples,
            taps={tap: StoredTap(count, str(layout)) for tap, (count, layout) in each.taps.items()},
            shards=each.num_shards,
            bytes=each.num_bytes,
            used_at=each.used_at.isoformat(timespec="seconds"),
        )
        for each in reversed(store.status())
    )
    total = sum(trunk.bytes for trunk in trunks)
    return FeaturesStatus(str(store.root), trunks, total, _max_bytes(settings, total))


def verify_features(settings: Settings) -> FeaturesCheck:
    """The damaged shards after every byte was read; changes nothing, since a training computes what it finds damaged again."""
    from heads.features import FeatureStore

    store = FeatureStore(_root(settings))
    before = store.status()
    damaged = tuple(DamagedShard(shard.trunk, shard.name, shard.reason) for shard in store.verify())
    shards, num_bytes = sum(each.num_shards for each in before), sum(each.num_bytes for each in before)
    return FeaturesCheck(str(store.root), shards, num_bytes, damaged)


def prune_features(settings: Settings, max_bytes: int) -> Pruned:
    """What was removed, least recently used first, until at most `max_bytes` are left.

    Raises Busy while a retraining is at work, which may be about to read what would go.
    """
    if holder := _at_work(settings, besides=None):
        raise Busy(f"a retraining is at work ({holder}) and reads features; wait until it ends, then run this again")
    return _prune(settings, max_bytes)


def check_features(settings: Settings) -> None:
    """Asks for an object store before a cluster starts; raises HeadsError where it refuses or does not answer."""
    from heads.features import FeatureStore

    if isinstance(settings.features, str):
        FeatureStore(settings.features).trunks()


def keep_in_bounds(session: RetrainingSession) -> None:
    """Removes the features used least recently where the store outgrew its bounds, and says so; not beside another retraining."""
    from heads.features import FeatureStore

    root = _root(session.settings)
    if isinstance(root, str) and session.settings.features_max_bytes is None:
        return
    total = sum(each.num_bytes for each in FeatureStore(root).status())
    allowed = _max_bytes(session.settings, total)
    if allowed is not None and total > allowed and not _at_work(session.settings, besides=session.plan.name):
        freed = _prune(session.settings, allowed)
        session.say(f"The feature store was over its {allowed / 1e9:.1f} GB: {freed.freed_bytes / 1e9:.1f} GB are freed")


def _prune(settings: Settings, max_bytes: int) -> Pruned:
    from heads.features import FeatureStore

    store = FeatureStore(_root(settings))
    freed = store.prune(max_bytes)
    left = sum(each.num_bytes for each in store.status())
    return Pruned(str(store.root), freed.num_shards, freed.num_bytes, left)


def _root(settings: Settings) -> Path | str:
    """Where the store lies. Raises AskedWrongly where neither it nor a storage root is named and the folder is no workspace."""
    if settings.features_root is None and settings.storage_root is None:
        dataset.open_workspace(settings.workspace)
    return settings.features


def _max_bytes(settings: Settings, num_bytes: int) -> int | None:
    """How large the store may be, which now has so many bytes; None: an object store has as much room as is paid for."""
    if settings.features_max_bytes is not None:
        return int(settings.features_max_bytes)
    root = settings.features
    if isinstance(root, str):
        return None
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return int(SHARE_OF_DISK * (shutil.disk_usage(there).free + num_bytes))


def _at_work(settings: Settings, *, besides: str | None) -> str | None:
    """Who holds the lock of another model's retraining on this storage root, if any."""
    for file in sorted((settings.storage / "locks").glob("*")):
        if file.name != besides:
            with file.open("r+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return f"{file.name}, {lock.read().strip() or 'unknown'}"
    return None
