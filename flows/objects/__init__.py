"""Objects of a DVC remote on machines without the workspace: by digest, many at a time, into a node's bounded copies."""

from __future__ import annotations

import os

from flows.objects.node import Damaged, Node, object_key
from flows.objects.node_cache import CacheStatus, NodeCache, cache_folder, cache_limit
from flows.objects.packs import write_packs
from flows.objects.reading import Missing, Reader
from flows.records import Remote

__all__ = [
    "CacheStatus",
    "Damaged",
    "Missing",
    "Node",
    "Reader",
    "cache_folder",
    "cache_status",
    "node_of",
    "object_key",
    "write_packs",
]

_NODES: dict[tuple[int, Remote], Node] = {}


def node_of(remote: Remote) -> Node:
    """This process's access to a remote; a forked process gets its own, since connections and threads are not inherited."""
    key = os.getpid(), remote
    if key not in _NODES:
        _NODES[key] = Node(remote, NodeCache(cache_folder(), cache_limit()))
    return _NODES[key]


def cache_status() -> CacheStatus:
    """What this machine's copies are, and how large they may be."""
    return NodeCache(cache_folder(), cache_limit()).status()
