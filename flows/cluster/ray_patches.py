"""What is left out of Ray by its private names, which its public options have no word for. All of them stand here.

Each only saves time and memory. `pyproject.toml` bounds Ray's version, and a test asks the installed one for every name.
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

# Each starts a process (seconds, on two cores): to shard Ray Data sets, which there are none of, and to free resources that
# the end of the job frees.
IDLE_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def lean_trainer() -> type[Any]:
    """Ray Train's TorchTrainer without the callbacks that start a process for nothing."""
    from ray.train.torch import TorchTrainer

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [each for each in callbacks if type(each).__name__ not in IDLE_CALLBACKS]

    return LeanTrainer
