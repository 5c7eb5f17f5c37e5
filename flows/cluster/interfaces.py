"""The network interface over which the members of a worker group speak with each other."""

from __future__ import annotations

import os
from typing import Any

import psutil


def torch_config(timeout_seconds: int) -> Any:
    """Ray Train's configuration of torch.distributed, with every member at the address by which Ray knows its node.

    Gloo listens where the machine's own name leads to. On many machines (Debian's /etc/hosts) that is the loopback, and members
    on other nodes are refused there.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config(timeout_s=timeout_seconds)


def choose_interface() -> None:
    """In a member: let gloo use the interface of the node's address, unless the person has named one (GLOO_SOCKET_IFNAME)."""
    import ray

    if name := interface_of(ray.util.get_node_ip_address()):  # type: ignore[no-untyped-call]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has this address, None if none has."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, held in interfaces if any(one.address == address for one in held)), None)
