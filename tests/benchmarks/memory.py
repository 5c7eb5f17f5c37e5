"""Peak memory of the workers over a data set, and over one ten times larger: at most a tenth more.

    python tests/benchmarks/memory.py [--images 300] [--times 10] [--image-size-px 96] [--epochs 2] [--folder DIR]

So many images of sign_digits' train and val, spread evenly over their classes, and the same ones ten times over: repeats have a
few bytes after the end of the picture, which decoders pass over, and so digests of their own. Each data set has a workspace, and
one plan there: four rates, frozen and `upto:stage5`, which fill the store and read it; two workers.

While `headstart retrain` runs, each Ray Train worker is looked at from outside ten times a second. What counts is its USS, the
memory that nobody else has: RSS holds torch's libraries as well, some hundred megabytes that are the same for any data set and
would hide a growth, and PSS shares those out by who else runs. The kernel's own record of the highest RSS, which misses no
moment, stands beside it. A shard is held until it has 64 MiB, twice while it is written, so a larger data set may have larger
shards; the largest of each run, and how many of them the growth comes to, are told as well.
Data and weights are taken from `../shared`. About 8 minutes on two cores. Ends with status 1 where the bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from workspaces import MOBILENET_V2, SHARED, Workspace, copy, say, spread

SOURCE = SHARED / "data" / "sign_digits"
BAR = 1.10
LOOK_SECONDS, SEARCH_SECONDS = 0.1, 1.0
MIB = 2**20
RATES = (3e-3, 1e-3, 3e-4, 1e-4)


class Watch:
    """The workers of a workspace's jobs, looked at until `stop`: by pid the most of each kind of memory, in bytes."""

    def __init__(self, place: Workspace) -> None:
        self._place, self._stopped = place, threading.Event()
        self.peaks: dict[int, dict[str, int]] = defaultdict(lambda: {"uss": 0, "rss": 0})
        self.num_looks = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the looking."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        found: list[psutil.Process] = []
        searched_at = -SEARCH_SECONDS
        while not self._stopped.wait(LOOK_SECONDS):
            if time.monotonic() - searched_at >= SEARCH_SECONDS:
                found, searched_at = list(self._workers()), time.monotonic()
            for process in found:
                # One that ends meanwhile has been looked at before.
                with contextlib.suppress(psutil.Error, OSError, StopIteration):
                    self._look(process)

    def _workers(self) -> Iterator[psutil.Process]:
        for process in self._place.cluster_processes():
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("ray::RayTrain"):
                    yield process

    def _look(self, process: psutil.Process) -> None:
        uss, peak = process.memory_full_info().uss, self.peaks[process.pid]
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        highest = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        self.peaks[process.pid] = {"uss": max(peak["uss"], uss), "rss": max(peak["rss"], highest)}
        self.num_looks += 1


def plan(asked: argparse.Namespace) -> dict[str, Any]:
    """Four frozen variants and as many behind a stored cut."""
    fit = {"epochs": asked.epochs, "batch_size": 32, "learning_rate": RATES, "image_size_px": asked.image_size_px, "seed": 0}
    common = {"name": "memory", "backbones": ["mobilenet_v2"], "weights": str(MOBILENET_V2), "heads": ["linear"]}
    return common | {"freeze": ["all", "upto:stage5"], "fit": fit, "workers": {"count": 2}}


def measure(files: list[Path], times: int, root: Path, asked: argparse.Namespace) -> dict[str, float]:
    """The highest USS and RSS of any worker, and the largest shard, in bytes."""
    source = root / f"source-{times}"
    copy(files, SOURCE, source, times)
    place = Workspace(root / f"workspace-{times}", source)
    samples = place.samples("train", "val", "test")
    if len({sample.digest for sample in samples}) != times * len(files):
        raise SystemExit(f"{times * len(files)} pictures came in as {len(samples)} samples: repeats were not taken for new ones")
    watch = Watch(place)
    try:
        report = place.retrain(plan(asked))
    finally:
        watch.stop()
    peaks = watch.peaks
    if not peaks:
        raise SystemExit("no worker of Ray Train was seen: has Ray changed their names?")
    shards = [file.stat().st_size for file in (place.storage / "features").glob("*/*.safetensors")]
    counts = report["counts"]
    say(f"{len(samples)} samples: {counts['trunk_forwards']} forwarded, {counts['features_read']} features read, "
        f"training job {report['seconds']['train']:.1f} s, looked {watch.num_looks} times")  # fmt: skip
    for pid, peak in sorted(peaks.items()):
        say(f"  worker {pid}: USS {peak['uss'] / MIB:.1f} MiB, highest RSS {peak['rss'] / MIB:.1f} MiB")
    say(f"  {len(shards)} shards, the largest {max(shards) / MIB:.1f} MiB")
    return {name: float(max(peak[name] for peak in peaks.values())) for name in ("uss", "rss")} | {"shard": float(max(shards))}


def main() -> int:
    """The exit status: 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--image-size-px", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    files = spread(SOURCE, asked.images)
    with tempfile.TemporaryDirectory(prefix="headstart-memory-", dir=asked.folder, ignore_cleanup_errors=True) as root:
        small, large = (measure(files, times, Path(root), asked) for times in (1, asked.times))
    growth, shard = large["uss"] - small["uss"], large["shard"] - small["shard"]
    told = f"{growth / shard:.1f} times the growth of the largest shard" if shard > 0 else "the largest shard did not grow"
    share = min(1.0, 2 * shard / growth) if growth > 0 else 1.0
    say(f"growth {growth / MIB:.1f} MiB, {told}; a shard held and written, twice its size, is {share:.0%} of it")
    ratio, highest = (large[name] / small[name] for name in ("uss", "rss"))
    say(f"USS {ratio:.3f} times as much with {asked.times} times the data (bar {BAR}), highest RSS {highest:.3f} times")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
