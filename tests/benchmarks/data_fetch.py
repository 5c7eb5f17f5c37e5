"""How fast a node reads small objects from a DVC remote on a real S3 server: with packs, without, and by `dvc pull`.

    python -m tests.benchmarks.data_fetch --objects 50000 --bytes 20000

Needs Ceph's radosgw (`tests/integration/radosgw.py` says which packages), which shares the cores with the reader.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from flows import dataset, objects, s3
from flows.manifest import NAME, render
from flows.objects.node import NodeObjects
from flows.objects.node_cache import NodeCache
from flows.objects.packs import FOLDER
from flows.records import Remote, Sample
from tests.integration import radosgw

REMOTE = Remote("s3://fetch/data")
# How many times as fast as `dvc pull` with packs, and how many objects a second in either way.
LEAST_GAIN, LEAST_RATE = 10.0, 500.0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make(folder: Path, count: int, num_bytes: int) -> list[str]:
    """A workspace with a data version of random bytes, pushed; the digests of its samples, in the order of an epoch."""
    workspace = dataset.init_workspace(folder, REMOTE)
    (workspace / "data").mkdir()
    source, samples = random.Random(0), []
    for number in range(count):
        content = source.randbytes(num_bytes)
        (workspace / "data" / f"{number}.bin").write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        samples.append(Sample(digest, f"{number}.bin", "train", {"label": "a"}))
    (workspace / "data" / NAME).write_text(render(samples))
    dataset.record_version(workspace, "random bytes")
    digests = [sample.digest for sample in samples]
    source.shuffle(digests)
    return digests


def read_all(digests: Sequence[str], every: Sequence[str], folder: Path) -> int:
    """Read these objects, as one process of a node whose processes read every one; the number of requests for it."""
    node = NodeObjects(REMOTE, NodeCache(folder))
    # As a job's members do, of all samples of their data version.
    node.pin("benchmark", lambda: every)
    node.prefetch("benchmark", digests)
    for digest in digests:
        node.take(digest)
    return node.reader.num_requests


def timed_fetch(name: str, digests: Sequence[str], folder: Path, num_processes: int) -> float:
    """Seconds that a node's processes take together, each with its share, as the ranks of a group have it."""
    start = time.perf_counter()
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        shares = [digests[number::num_processes] for number in range(num_processes)]
        requests = sum(pool.map(partial(read_all, every=digests, folder=folder), shares))
    seconds = time.perf_counter() - start
    wrong = [p for p in folder.glob("objects/??/*") if hashlib.md5(p.read_bytes()).hexdigest() != p.parent.name + p.name]
    assert not wrong
    assert len(list(folder.glob("objects/??/*"))) == len(set(digests))
    rate = len(digests) / seconds
    say(f"{name}, {num_processes} processes: {seconds:.1f} s, {rate:.0f} objects/s, {requests} requests")
    return seconds


def timed_pull(workspace: Path, clone: Path, count: int) -> float:
    """Seconds of `dvc pull` in a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", str(workspace), str(clone)], check=True)
    start = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name("dvc")), "pull", "--quiet"], cwd=clone, check=True)
    seconds = time.perf_counter() - start
    say(f"dvc pull: {seconds:.1f} s, {count / seconds:.0f} objects/s")
    return seconds


def main() -> int:
    """Print the seconds and rates of each way; the exit status is 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headstart-fetch-") as made:
        folder = Path(made)
        (folder / "store").mkdir()
        with radosgw.serving(folder / "store") as server:
            os.environ.update(server.environment(), XDG_CACHE_HOME=str(folder / "home"))
            s3.connect().create_bucket(Bucket="fetch")
            digests = make(folder / "workspace", asked.objects, asked.bytes)
            with_packs = timed_fetch("with packs", digests, folder / "packs", asked.processes)
            pulled = timed_pull(folder / "workspace", folder / "clone", asked.objects)
            reader = objects.Reader(REMOTE)
            client, bucket = s3.connect(), reader.bucket
            for name in list(reader.names(FOLDER)):
                client.delete_object(Bucket=bucket, Key=f"data/{FOLDER}{name}")
            without = timed_fetch("without packs", digests, folder / "alone", asked.processes)
            say(f"dvc pull takes {pulled / with_packs:.1f} times as long as with packs, {pulled / without:.1f} as without")
            is_met = pulled >= LEAST_GAIN * with_packs and asked.objects >= LEAST_RATE * max(with_packs, without)
            return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
