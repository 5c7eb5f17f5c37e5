"""The nodes of a job's cluster, watched by its driver: who was lost or joined, and for how many workers there is room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flows.records import Workers
from flows.words import counted

LOG = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
# A training that waits for a node says so again and again.
TOLD_AGAIN_SECONDS = 600.0
KUBERAY_COMMAND = "KUBERAY_GEN_RAY_START_CMD"


@dataclass(frozen=True)
class Node:
    """A living node: its host's name and address in words, and its resources by Ray's names."""

    name: str
    resources: Mapping[str, float]

    def room(self, workers: Workers) -> int:
        """How many of these workers fit on the node while nothing else runs there."""
        asked = (("CPU", workers.cpus_per_worker), ("GPU", workers.gpus_per_worker))
        return int(min(self.resources.get(name, 0) // amount for name, amount in asked if amount))


Nodes = Mapping[str, Node]


def look() -> dict[str, Node]:
    """The living nodes of the cluster that this process has joined, by id."""
    import ray

    told: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: Node(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["Resources"])
        for node in told
        if node["Alive"]
    }


def may_grow(environ: Mapping[str, str]) -> bool:
    """Whether an autoscaler adds nodes to the cluster when they are asked for, by the environment of a job's driver on its head.

    KubeRay starts the head without Ray's own monitor where its autoscaler is on, and, like `ray up`, names the second version.
    """
    return environ.get("RAY_enable_autoscaler_v2") in ("1", "true") or "--no-monitor" in environ.get(KUBERAY_COMMAND, "")


def changes(before: Nodes, now: Nodes, workers: Workers) -> list[str]:
    """What happened to the nodes between two looks, a line each, with what it means for a training by these workers."""
    lost = [f"Ray lost the node {before[name].name}" for name in before.keys() - now.keys()]
    joined = [f"The node {now[name].name} joined" for name in now.keys() - before.keys()]
    events = sorted(lost) + sorted(joined)
    return [*events[:-1], f"{events[-1]}; {means(now, workers)}"] if events else []


def means(now: Nodes, workers: Workers) -> str:
    """What these nodes mean for a training by these workers, in words."""
    room = sum(node.room(workers) for node in now.values())
    if room >= workers.count:
        return f"there is room for {_all(workers)}"
    fits = f"there is room for {room} of {counted(workers.count, 'worker')}"
    if room >= workers.fewest:
        return f"{fits}: the training goes on with {room}"
    remedy = "" if workers.least or workers.count == 1 else f" (or cancel, and write workers: {{count: [1, {workers.count}]}})"
    return f"{fits}: the training waits for a node with room for {workers.fewest - room} more{remedy}"


@contextmanager
def watching(workers: Workers, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell in the block, from a thread, when a node is lost or joins, and at once and again while a training waits for one."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(workers, tell, stop), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _watch(workers: Workers, tell: Callable[[str], None], stop: threading.Event) -> None:
    nodes: Nodes | None = None
    untold: list[str] = []
    told_at, was_logged = time.monotonic(), False
    while True:
        try:
            now = look()
            lines = [] if nodes is None else changes(nodes, now, workers)
            waits = sum(node.room(workers) for node in now.values()) < workers.fewest
            if nodes is None and waits:
                lines = [f"On this cluster {means(now, workers)}"]
            elif not lines and waits and time.monotonic() - told_at > TOLD_AGAIN_SECONDS:
                lines = [f"Still waiting: {means(now, workers)}"]
            nodes, untold = now, untold + lines
            while untold:
                tell(untold[0])
                del untold[0]
                told_at = time.monotonic()
        except Exception as error:
            # Ray is busy, or the job's place is out of reach for a while: what is untold is told later.
            if not was_logged:
                LOG.warning("the nodes cannot be watched now, the training goes on: %s", error)
            was_logged = True
        if stop.wait(LOOK_SECONDS):
            return


def _all(workers: Workers) -> str:
    return "the one worker" if workers.count == 1 else f"all {workers.count} workers"
