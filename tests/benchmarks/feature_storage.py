"""Which file format the feature store should use: writing, opening and random gathers, each candidate in its own process.

    python tests/benchmarks/feature_storage.py [--fraction 1.0] [--folder DIR]

About a minute and 0.5 GB of disk on two cores. Every candidate holds the same 200 shards and is asked for the same
batches of 64 random samples, the page cache warm; `grown_mb` is how much more memory the process has after them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from heads.features import FeatureStore, Key

NUM_SHARDS, BATCH = 200, 64
CASES = {"vectors": ((1280,), 50_000), "maps": ((320, 14, 14), 2_000)}
Gather = Callable[[np.ndarray[Any, Any]], Any]
Shard = np.ndarray[Any, Any]


def _rows(positions: np.ndarray[Any, Any], size: int) -> Iterator[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """For each shard asked: its number, the rows in it, and where they go in the batch."""
    shards, rows = np.divmod(positions, size)
    for shard in np.unique(shards):
        where = np.nonzero(shards == shard)[0]
        yield int(shard), rows[where], where


def _gather_arrays(arrays: list[Shard]) -> Gather:
    size, shape, dtype = len(arrays[0]), arrays[0].shape[1:], arrays[0].dtype

    def gather(positions: np.ndarray[Any, Any]) -> Shard:
        out = np.empty((len(positions), *shape), dtype)
        for shard, rows, where in _rows(positions, size):
            out[where] = arrays[shard][rows]
        return out

    return gather


class Npy:
    """A .npy a shard, memory-mapped by numpy."""

    def write(self, folder: Path, number: int, shard: Shard) -> None:
        np.save(folder / f"{number:05}.npy", shard)

    def open(self, folder: Path) -> Gather:
        return _gather_arrays([np.load(path, mmap_mode="r") for path in sorted(folder.iterdir())])


class SafetensorsMapped:
    """A safetensors file a shard, memory-mapped by its own library."""

    def write(self, folder: Path, number: int, shard: Shard) -> None:
        save_file({"x": shard}, folder / f"{number:05}.safetensors")

    def open(self, folder: Path) -> Gather:
        opened = [safe_open(path, framework="pt") for path in sorted(folder.iterdir())]
        return _gather_arrays([file.get_tensor("x").numpy() for file in opened])  # type: ignore[no-untyped-call]


class Arrow:
    """An Arrow IPC file a shard, memory-mapped, its buffer seen as one array without a copy."""

    def write(self, folder: Path, number: int, shard: Shard) -> None:
        flat = shard.reshape(len(shard), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        table = pa.table({"x": column})
        with pa.OSFile(str(folder / f"{number:05}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def open(self, folder: Path) -> Gather:
        columns = [pa.ipc.open_file(pa.memory_map(str(p))).get_batch(0).column(0) for p in sorted(folder.iterdir())]
        return _gather_arrays([c.flatten().to_numpy(zero_copy_only=True).reshape(len(c), -1) for c in columns])


class Parquet:
    """A Parquet file a shard, uncompressed and without dictionaries; a shard is decoded whole to read a row of it."""

    def write(self, folder: Path, number: int, shard: Shard) -> None:
        flat = shard.reshape(len(shard), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        pq.write_table(
            pa.table({"x": column}),
            folder / f"{number:05}.parquet",
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )

    def open(self, folder: Path) -> Gather:
        files = [pq.ParquetFile(path) for path in sorted(folder.iterdir())]
        size = files[0].metadata.num_rows

        def gather(positions: np.ndarray[Any, Any]) -> Shard:
            parts: dict[int, Shard] = {}
            for shard, rows, where in _rows(positions, size):
                column = files[shard].read(use_threads=False).column(0).combine_chunks()
                values = column.flatten().to_numpy().reshape(size, -1)[rows]
                parts.update(zip(where.tolist(), values, strict=True))
            return np.stack([parts[index] for index in range(len(positions))])

        return gather


class Store:
    """What `heads.features` does: a safetensors file a shard with checksums, all proven on opening, read by position."""

    stores: ClassVar[dict[Path, FeatureStore]] = {}

    def write(self, folder: Path, number: int, shard: Shard) -> None:
        keys = [Key(f"{number * len(shard) + row:032x}") for row in range(len(shard))]
        self.stores.setdefault(folder, FeatureStore(folder)).trunk("0" * 16).write(keys, {"x": torch.from_numpy(shard)})

    def open(self, folder: Path) -> Gather:
        features = FeatureStore(folder).trunk("0" * 16).open(self._keys(folder), ["x"])
        return lambda positions: features[torch.from_numpy(positions)]["x"]

    def _keys(self, folder: Path) -> list[Key]:
        num_samples = self.stores[folder].trunk("0" * 16).num_samples("x")
        return [Key(f"{number:032x}") for number in range(num_samples)]


class Held(Store):
    """The same, held in memory."""

    def open(self, folder: Path) -> Gather:
        features = FeatureStore(folder).trunk("0" * 16).open(self._keys(folder), ["x"]).in_memory()
        return lambda positions: features[torch.from_numpy(positions)]["x"]


CANDIDATES: dict[str, Any] = {
    "npy, mapped": Npy(),
    "safetensors, mapped": SafetensorsMapped(),
    "arrow ipc, mapped": Arrow(),
    "parquet": Parquet(),
    "heads.features": Store(),
    "heads.f., in memory": Held(),
}


def _resident_mb() -> float:
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)


def _batch_seconds(gather: Gather, num_samples: int, num_batches: int) -> list[float]:
    order, taken = np.random.default_rng(0).permutation(num_samples), []
    for number in range(num_batches):
        positions = order[(number * BATCH) % (num_samples - BATCH) :][:BATCH]
        started = time.perf_counter()
        gather(positions)
        taken.append(time.perf_counter() - started)
    return taken


def measure(name: str, case: str, fraction: float, root: Path) -> dict[str, Any]:
    """One candidate's row of the table, measured in this process."""
    torch.set_num_threads(1)
    shape, num_samples = CASES[case]
    size = max(1, int(num_samples * fraction) // NUM_SHARDS)
    folder, candidate = root / "shards", CANDIDATES[name]
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    shards = [generator.standard_normal((size, *shape), np.float32) for _ in range(4)]
    started = time.perf_counter()
    for number in range(NUM_SHARDS):
        candidate.write(folder, number, shards[number % len(shards)])
    write_seconds = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    started = time.perf_counter()
    gather = candidate.open(folder)
    open_seconds = time.perf_counter() - started
    # An epoch of batches; Parquet decodes a shard a row, and four batches tell enough.
    num_batches = 4 if name == "parquet" else NUM_SHARDS * size // BATCH
    gather(np.arange(BATCH) % (NUM_SHARDS * size))
    before = _resident_mb()
    taken = sorted(_batch_seconds(gather, NUM_SHARDS * size, num_batches))
    given = size * NUM_SHARDS * int(np.prod(shape)) * 4
    return {
        "case": case,
        "candidate": name,
        "write_mb_s": given / write_seconds / 1e6,
        "size_mb": num_bytes / 1e6,
        "open_ms": open_seconds * 1e3,
        "batch_ms": sum(taken) / len(taken) * 1e3,
        "batch_p99_ms": taken[int(len(taken) * 0.99)] * 1e3,
        "grown_mb": _resident_mb() - before,
    }


def _measure_apart(name: str, case: str, fraction: float, root: Path) -> dict[str, Any]:
    # Once more over files that lie in the page cache would only repeat it: they were just written.
    command = [sys.executable, __file__, "--only", name, case, "--fraction", str(fraction), "--folder", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{x:>12.1f}" if isinstance(x, float) else f"{x:<20}" for x in row.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--only", nargs=2, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        name, case = asked.only
        print(json.dumps(measure(name, case, asked.fraction, asked.folder)))  # noqa: T201
        return
    printed = False
    for case in CASES:
        for name in CANDIDATES:
            root = Path(tempfile.mkdtemp(prefix="feature-storage-", dir=asked.folder))
            try:
                row = _measure_apart(name, case, asked.fraction, root)
            finally:
                shutil.rmtree(root)
            if not printed:
                print("  ".join(f"{x:<20}" if i < 2 else f"{x:>12}" for i, x in enumerate(row)))  # noqa: T201
            printed = True
            print(_line(row), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
