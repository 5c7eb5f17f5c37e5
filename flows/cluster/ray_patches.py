"""Patches of Ray's private names, to leave out parts of it for which there is no public option. All of them stand here.

They only save time and memory. `pyproject.toml` bounds Ray's version, and a test checks that the installed one has every name.
"""

from __future__ import annotations

from typing import Any

# `ray start` itself, without what jobs on one machine never use: Ray Serve, Ray's remote client and the autoscaler, together
# half of the start and 180 MiB.
LEAN_START = """
import sys
sys.modules["ray.serve"] = None
from ray._private.node import Node
Node.start_ray_client_server = Node.start_monitor = lambda self: None
from ray.scripts.scripts import main
main()
"""

# Each starts a process (seconds, on two cores): to shard Ray Data sets, which we do not use, and to free resources that the
# end of the job frees.
IDLE_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def lean_trainer() -> type[Any]:
    """Ray Train's TorchTrainer without the callbacks that start a process for nothing."""
    from ray.train.torch import TorchTrainer

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ not in IDLE_CALLBACKS]

    return LeanTrainer
