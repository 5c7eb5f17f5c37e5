"""A Ray cluster of two nodes that have no folder in common with each other or with this machine."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.cluster.ray_patches import LEAN_START
from tests.integration import nodes
from tests.integration.nodes import Network, Node

ROOT = Path(__file__).parents[2]
# The code of a job travels with it: what this repository holds of it must not be needed on a node.
CODE = (ROOT / "flows", ROOT / "heads")
OBJECT_STORE_BYTES = 128 * 2**20
ATTEMPTS = 3
# A group of two workers of a CPU each has to use both nodes.
CPUS_PER_NODE = 1


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster: its two nodes and its token."""

    head: Node
    worker: Node
    token: str

    @property
    def address(self) -> str:
        """The address for HEADSTART_RAY_ADDRESS."""
        return f"http://{self.head.address}:8265"

    def join(self, node: Node, environment: Mapping[str, str]) -> None:
        """Make a node part of the cluster."""
        _start_ray(node, self.token, environment, f"--address={self.head.address}:6379")


def make_nodes(network: Network, *, hidden: Sequence[Path], worker_cache_bytes: int = 0) -> tuple[Node, Node]:
    """Two nodes in a network, without Ray yet, to which the `hidden` folders and the code of this repository are empty.

    `worker_cache_bytes`, if given, is the size of the disk for the cache of the second one.
    """
    folders = (*hidden, *CODE)
    return network.add("head", hidden=folders), network.add("worker", hidden=folders, cache_bytes=worker_cache_bytes)


def start(head: Node, worker: Node, environment: Mapping[str, str]) -> TwoNodes:
    """Start Ray on both nodes; it ends with them.

    `environment` is what whoever runs the nodes gives them, such as their keys of an object store.
    """
    cluster = TwoNodes(head, worker, secrets.token_hex(32))
    _start_ray(head, cluster.token, environment, "--head", "--port=6379", f"--dashboard-host={head.address}")
    cluster.join(worker, environment)
    return cluster


def _start_ray(node: Node, token: str, environment: Mapping[str, str], *words: str) -> None:
    """Start Ray on a node, as its people would: by `ray start`, with a token."""
    ray = (sys.executable, "-c", LEAN_START)
    start = (
        *ray,
        "start",
        *words,
        f"--node-ip-address={node.address}",
        f"--num-cpus={CPUS_PER_NODE}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={node.disk}/ray",
        "--disable-usage-stats",
    )
    environment = {
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # A lost node is missed after ten seconds; by default after up to a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
    }
    for _ in range(ATTEMPTS - 1):
        try:
            node.run(*start, environment=environment)
        except AssertionError as error:
            # It waits for its own processes for 30 seconds, which a machine with much to do may take.
            if "timed out during startup" not in str(error):
                raise
            node.run(*ray, "stop", "--force", environment=environment)
        else:
            return
    node.run(*start, environment=environment)


def missing() -> str | None:
    """Why there can be no such cluster here, and how there could be; None if there can."""
    return nodes.missing()
