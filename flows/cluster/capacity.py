"""A check that a worker group can be had, before anything is started for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flows.cluster import processes
from flows.cluster.head import MIN_CPUS, MIN_MEMORY_BYTES, find_cluster
from flows.errors import AskedWrongly
from flows.records import Workers

# A worker's memory before any image: torch and its libraries. MIN_MEMORY_BYTES includes two workers.
WORKER_BYTES = int(0.4 * 2**30)
ELSEWHERE = "or set HEADSTART_RAY_ADDRESS to a cluster that has them"


def check(address: str | None, storage: Path, workers: Workers) -> None:
    """Check that the cluster at `address` answers, or, if it is None, that this machine can hold a local one for the workers.

    Raises Unreachable within ten seconds, AskedWrongly on too few CPUs, GPUs or too little memory. The size of a named cluster
    is checked in the job itself, since clusters may grow.
    """
    if address is not None:
        find_cluster(address, storage)
        return
    cpus, gpus = max(MIN_CPUS, os.cpu_count() or 1), local_gpus(os.environ)
    # A worker that asks for less than a CPU still is a whole process.
    if (asked := workers.fewest * max(1, workers.cpus_per_worker)) > cpus:
        raise AskedWrongly(
            f"workers: {workers.fewest} of {workers.cpus_per_worker:g} CPUs need {asked:g}, and a local Ray on this machine of "
            f"{os.cpu_count()} gives at most {cpus}: lower workers.count or workers.cpus_per_worker, {ELSEWHERE}"
        )
    if gpus is not None and (asked := workers.fewest * workers.gpus_per_worker) > gpus:
        raise AskedWrongly(
            f"workers: {workers.fewest} of {workers.gpus_per_worker:g} GPUs need {asked:g}, and this machine has {gpus}: "
            f"lower workers.gpus_per_worker (0 trains on the CPU), {ELSEWHERE}"
        )
    # As many as Ray will start: all that it has CPUs for.
    num_started = min(workers.count, int(cpus // workers.cpus_per_worker))
    needed = MIN_MEMORY_BYTES + max(0, num_started - 2) * WORKER_BYTES
    available = processes.available_memory_bytes()
    if available < needed and find_cluster(None, storage) is None:
        raise AskedWrongly(
            f"a local Ray with {num_started} workers needs {needed / 2**30:.1f} GiB of free memory and this machine has "
            f"{available / 2**30:.1f} GiB: end other programs, lower workers.count, {ELSEWHERE}"
        )


def local_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> int | None:
    """The number of GPUs that processes on this machine may use, or None if only a driver could tell."""
    if any((devices / name).exists() for name in ("dxg", "kfd")):  # Windows' Linux, AMD
        return None
    found = sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, sum(name not in ("", "-1") for name in visible.split(",")))
