"""Inside a job: the worker group (Ray Train), what its members say to it, and plain tasks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.cluster.ray_patches import lean_trainer
from flows.errors import AskedWrongly
from flows.records import Workers

MAX_FAILURES = 3
CHECKPOINTS_KEPT = 2
# Members that train variants of their own wait for each other at the end; one that dies breaks its connections at once.
COLLECTIVE_TIMEOUT_SECONDS = 12 * 3600

WorkerLoop = Callable[[dict[str, Any]], None]


def join(workers: Workers) -> None:
    """Joins this job's cluster. Raises AskedWrongly if it is too small for these workers."""
    import ray

    # Joined already where the same job scores another bundle.
    if not ray.is_initialized():
        ray.init()
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for resource, each in (("CPU", workers.cpus_per_worker), ("GPU", workers.gpus_per_worker)):
        if workers.count * each > total.get(resource, 0):
            raise AskedWrongly(
                f"the plan's workers ask for {workers.count} x {each:g} {resource} and the cluster has "
                f"{total.get(resource, 0):g}: lower workers.count or workers.{resource.lower()}s_per_worker, or add a node"
            )


def run_group(worker_loop: WorkerLoop, config: dict[str, Any], *, workers: Workers, name: str, storage: Path) -> None:
    """Runs `worker_loop` in every worker until all return; a group that lost a worker starts again, three times at most."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    resources: dict[str, float] = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    trainer = lean_trainer()(
        worker_loop,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    trainer.fit()


def forget_group(name: str, storage: Path) -> None:
    """Deletes what a finished group left: a later group of this name starts anew instead of resuming it."""
    shutil.rmtree(storage / name, ignore_errors=True)


def report(save: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
    """Tells the group that this member reached a checkpoint; called by all, `save` (into a folder) by rank 0 only."""
    import ray.train

    if save is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="headstart-checkpoint-") as folder:
        save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def last_checkpoint(into: Path) -> Path | None:
    """A copy, under `into`, of the last checkpoint that the whole group reached."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else Path(checkpoint.to_directory(str(into)))


def last_note(name: str) -> Any:
    """What the JSON file of this name in the last checkpoint that the whole group reached says, or None."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        file = Path(folder) / name
        return json.loads(file.read_text()) if file.is_file() else None


def rank() -> int:
    """This member's number in its group; 0 leads."""
    import ray.train

    return int(ray.train.get_context().get_world_rank())


def count() -> int:
    """How many members its group has."""
    import ray.train

    return int(ray.train.get_context().get_world_size())


def device() -> Any:
    """The torch device of this member."""
    from ray.train.torch import get_device

    return get_device()


def map_shards(function: Callable[..., Any], shards: Sequence[tuple[Any, ...]], *, workers: Workers) -> list[Any]:
    """`function(*shard)` of every shard, in order, each in a worker of its own; a lost one is run again."""
    import ray

    task = ray.remote(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker, max_retries=MAX_FAILURES)(function)
    return list(ray.get([task.remote(*shard) for shard in shards]))
