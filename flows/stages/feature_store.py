"""Care of the feature store: what it holds, whether its files are whole, and how large it may be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows import dataset
from flows.errors import Busy
from flows.settings import Settings
from flows.stages.session import RetrainingSession, at_work

# The share of its disk, less what others use, that the store may fill if no size is set.
SHARE_OF_DISK = 0.5


@dataclass(frozen=True)
class StoredTap:
    """One stored output of a trunk: its number of samples, and the layout of a sample's features."""

    samples: int
    layout: str


@dataclass(frozen=True)
class StoredTrunk:
    """The stored features of a trunk, and the trunk itself in `about` (backbone, image size, views and so on).

    `used_at` is when they were last read, in ISO format.
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
    """A file of a trunk's features that is no longer as it was written, and how that shows."""

    trunk_id: str
    shard: str
    reason: str


@dataclass(frozen=True)
class FeaturesCheck:
    """What a check of every byte of the feature store found."""

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
            trunk_id=trunk.trunk,
            about=store.description(trunk.trunk),
            samples=trunk.num_samples,
            taps={tap: StoredTap(count, str(layout)) for tap, (count, layout) in trunk.taps.items()},
            shards=trunk.num_shards,
            bytes=trunk.num_bytes,
            used_at=trunk.used_at.isoformat(timespec="seconds"),
        )
        for trunk in reversed(store.status())
    )
    total = sum(trunk.bytes for trunk in trunks)
    return FeaturesStatus(str(store.root), trunks, total, _max_bytes(settings, total))


def verify_features(settings: Settings) -> FeaturesCheck:
    """Read every byte and list the damaged shards; removes none, since a training computes damaged features again."""
    from heads.features import FeatureStore

    store = FeatureStore(_root(settings))
    before = store.status()
    damaged = tuple(DamagedShard(shard.trunk, shard.name, shard.reason) for shard in store.verify())
    shards, num_bytes = sum(trunk.num_shards for trunk in before), sum(trunk.num_bytes for trunk in before)
    return FeaturesCheck(str(store.root), shards, num_bytes, damaged)


def prune_features(settings: Settings, max_bytes: int) -> Pruned:
    """Remove features, least recently used first, until at most `max_bytes` are left.

    Raises Busy while a retraining runs, which may be about to read them.
    """
    if holder := at_work(settings):
        raise Busy(f"a retraining is at work ({holder}) and reads features; wait until it ends, then run this again")
    return _prune(settings, max_bytes)


def check_features(settings: Settings) -> None:
    """Check that an object store answers, before a cluster is started. Raises HeadsError if it refuses or is silent."""
    from heads.features import FeatureStore

    if isinstance(settings.features, str):
        FeatureStore(settings.features).trunks()


def keep_in_bounds(session: RetrainingSession) -> None:
    """Remove the features used least recently if the store is too large, and say so; not while another retraining runs."""
    from heads.features import FeatureStore

    root = _root(session.settings)
    if isinstance(root, str) and session.settings.features_max_bytes is None:
        return
    total = sum(trunk.num_bytes for trunk in FeatureStore(root).status())
    allowed = _max_bytes(session.settings, total)
    if allowed is not None and total > allowed and not at_work(session.settings, besides=session.plan.name):
        freed = _prune(session.settings, allowed)
        session.say(f"The feature store was over its {allowed / 1e9:.1f} GB: {freed.freed_bytes / 1e9:.1f} GB are freed")


def _prune(settings: Settings, max_bytes: int) -> Pruned:
    from heads.features import FeatureStore

    store = FeatureStore(_root(settings))
    freed = store.prune(max_bytes)
    left = sum(trunk.num_bytes for trunk in store.status())
    return Pruned(str(store.root), freed.num_shards, freed.num_bytes, left)


def _root(settings: Settings) -> Path | str:
    """The store's folder or address. Raises AskedWrongly if the settings name none and the folder is no workspace."""
    if settings.features_root is None and settings.storage_root is None:
        dataset.open_workspace(settings.workspace)
    return settings.features


def _max_bytes(settings: Settings, num_bytes: int) -> int | None:
    """The most bytes that the store may have, given those it has; None for an object store, which no disk limits."""
    if settings.features_max_bytes is not None:
        return int(settings.features_max_bytes)
    root = settings.features
    if isinstance(root, str):
        return None
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return int(SHARE_OF_DISK * (shutil.disk_usage(there).free + num_bytes))
