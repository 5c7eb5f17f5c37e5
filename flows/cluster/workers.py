"""For the code inside a job: the worker group (Ray Train), its members' reports and checkpoints, and plain Ray tasks."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from flows.cluster.deaths import telling_deaths
from flows.cluster.interfaces import torch_config
from flows.cluster.nodes import may_grow
from flows.cluster.ray_patches import lean_trainer
from flows.errors import AskedWrongly
from flows.records import Workers

MAX_FAILURES = 3
CHECKPOINTS_KEPT = 2
# So long, since members that train works of their own wait for each other. A dead one breaks its connections at once.
COLLECTIVE_TIMEOUT_SECONDS = 12 * 3600
# A larger group begins again at the last checkpoint: no sooner after it began than this.
GROW_SECONDS = 300.0

WorkerLoop = Callable[[dict[str, Any]], None]
_HAS_GROUP: ContextVar[bool] = ContextVar("has_group", default=True)


def join(workers: Workers) -> None:
    """Join this job's cluster. Raises AskedWrongly if it is too small for these workers, and no autoscaler makes it larger."""
    import ray

    # Joined already if the same job scores another bundle.
    if not ray.is_initialized():
        ray.init()
    if not may_grow(os.environ):
        check_size(ray.cluster_resources(), workers)  # type: ignore[no-untyped-call]


def check_size(total: Mapping[str, float], workers: Workers) -> None:
    """Check that a cluster with these resources in all, by Ray's names, has room for the workers; AskedWrongly if not."""
    for resource, amount in (("CPU", workers.cpus_per_worker), ("GPU", workers.gpus_per_worker)):
        if workers.fewest * amount > total.get(resource, 0):
            raise AskedWrongly(
                f"the plan's workers ask for {workers.fewest} x {amount:g} {resource} and the cluster has "
                f"{total.get(resource, 0):g}: lower workers.count or workers.{resource.lower()}s_per_worker, or add a node"
            )


def load() -> None:
    """Load Ray Train, and torch with it."""
    lean_trainer()


def run_group(worker_loop: WorkerLoop, config: dict[str, Any], *, workers: Workers, name: str, storage: str) -> None:
    """Run `worker_loop` in every worker until all return; a group that lost a worker starts again, three times at most.

    `storage` is the folder, or the address in a bucket, of Ray's own files, checkpoints of the whole group among them.
    If there is room for more or fewer workers than before, and `workers` allow it, the group starts again with so many.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    resources: dict[str, float] = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    trainer = lean_trainer()(
        worker_loop,
        train_loop_config=config,
        torch_config=torch_config(COLLECTIVE_TIMEOUT_SECONDS),
        # mypy reads Ray Train's older class of this name.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=workers.count if workers.least is None else (workers.least, workers.count),  # type: ignore[arg-type]
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=GROW_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.removeprefix("s3://"),
            storage_filesystem=_bucket_files() if storage.startswith("s3://") else None,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    with telling_deaths("the training"):
        trainer.fit()


@contextmanager
def without_group() -> Iterator[None]:
    """Let this process work in the block as the only member of a group would, on the CPU, without Ray Train.

    It then keeps its own checkpoints: the group has none.
    """
    token = _HAS_GROUP.set(False)
    try:
        yield
    finally:
        _HAS_GROUP.reset(token)


def _bucket_files() -> Any:
    """S3 as Ray takes it: through botocore, which finds endpoint and credentials as the rest of this program does.

    Arrow's own client knows no profiles, and sends checksums that other servers than Amazon's refuse.
    """
    import fsspec
    from pyarrow import fs

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("s3", use_listings_cache=False)))


def report(save: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
    """Report to Ray that this member reached a checkpoint; all members call it, rank 0 with `save` (into a folder)."""
    import ray.train

    if save is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="headstart-checkpoint-") as folder:
        save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def last_checkpoint(into: Path) -> Path | None:
    """A copy, under `into`, of the last checkpoint that the whole group reached."""
    if not _HAS_GROUP.get():
        return None
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else Path(checkpoint.to_directory(str(into)))


def last_note(name: str) -> Any:
    """The content of a JSON file in the last checkpoint that the whole group reached, or None."""
    if not _HAS_GROUP.get():
        return None
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        file = Path(folder) / name
        return json.loads(file.read_text()) if file.is_file() else None


def rank() -> int:
    """This member's rank in its group; rank 0 leads."""
    if not _HAS_GROUP.get():
        return 0
    import ray.train

    return int(ray.train.get_context().get_world_rank())


def num_ranks() -> int:
    """The number of members of this member's group."""
    if not _HAS_GROUP.get():
        return 1
    import ray.train

    return int(ray.train.get_context().get_world_size())


def device() -> Any:
    """The torch device of this member."""
    if not _HAS_GROUP.get():
        import torch

        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def map_shards(function: Callable[..., Any], shards: Sequence[tuple[Any, ...]], *, workers: Workers) -> list[Any]:
    """The results of `function(*shard)`, in order, each from a Ray task of its own; a lost task is run again."""
    import ray

    task = ray.remote(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker, max_retries=MAX_FAILURES)(function)
    with telling_deaths("the job"):
        return list(ray.get([task.remote(*shard) for shard in shards]))


def cores_of(workers: Workers) -> int:
    """How many threads a single process may have in place of the group: the cores of all of it that this machine has."""
    return max(1, min(int(workers.count * workers.cpus_per_worker), os.cpu_count() or 1))


def run_alone(function: Callable[..., Any], *args: Any, workers: Workers) -> Any:
    """The result of `function(*args)`: in this process, or, if the group has GPUs, in one Ray task that has a worker's."""
    if not workers.gpus_per_worker:
        return function(*args)
    join(workers)
    (result,) = map_shards(function, [args], workers=workers)
    return result
