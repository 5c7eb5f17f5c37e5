"""Objects of a DVC remote on machines without the workspace: by digest, many at a time, into a node's bounded copies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flows.objects.fetched import counting, num_fetched
from flows.objects.node import Damaged, NodeObjects
from flows.objects.node_cache import CacheStatus, NodeCache, cache_limit
from flows.objects.packing import write_packs
from flows.objects.reading import OBJECTS, Missing, Reader, object_key
from flows.records import Remote
from heads.cache_home import cache_home

__all__ = [
    "CacheStatus",
    "Damaged",
    "Missing",
    "NodeObjects",
    "Reader",
    "cache_folder",
    "cache_status",
    "counting",
    "find_missing",
    "node_of",
    "num_fetched",
    "object_key",
    "write_packs",
]

_NODES: dict[tuple[int, Remote], NodeObjects] = {}


def cache_folder() -> Path:
    """The folder of this person's copies of objects on this machine."""
    return cache_home("data")


def node_of(remote: Remote) -> NodeObjects:
    """This process's access to a remote; a forked process gets its own, since connections and threads are not inherited."""
    key = os.getpid(), remote
    if key not in _NODES:
        # Of threads that ask at once all get the same.
        _NODES.setdefault(key, NodeObjects(remote, NodeCache(cache_folder(), cache_limit())))
    return _NODES[key]


def find_missing(remote: Remote, digests: Iterable[str]) -> list[str]:
    """Those of the digests that the remote lacks, by its listing. Raises as `flows.s3` does if it cannot be listed."""
    held = {name.replace("/", "") for name in Reader(remote).names(OBJECTS)}
    return [digest for digest in dict.fromkeys(digests) if digest not in held]


def cache_status() -> CacheStatus:
    """What this machine's copies are, and how large they may be."""
    return NodeCache(cache_folder(), cache_limit()).status()
