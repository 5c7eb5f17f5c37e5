"""What grows with the number of samples: bytes, seconds and memory of the manifest, the plan, a job's files and the split tables.

    python tests/benchmarks/scale.py --samples 10000 100000 --variants 64

Rows are made up (md5 digests, names, a class of 37 and a group of four samples each), nothing is trained. Each step runs in a
process of its own; its peak is the largest memory that the process held, less what it held before the step, and what is kept is
the size of its result.
infra/SCALE.md has the numbers and what follows from them.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

NUM_CLASSES = 37


def _samples(number: int) -> tuple[Any, ...]:
    from flows.records import Sample

    def split(index: int) -> str:
        return ("test", "val")[index % 10] if index % 10 < 2 else "train"

    def breed(index: int) -> dict[str, str | None]:
        return {"breed": f"breed_{index % NUM_CLASSES}"}

    def sample(index: int) -> Sample:
        digest = hashlib.md5(b"%d" % index).hexdigest()
        return Sample(digest, f"images/{index:09d}.jpg", split(index // 4), breed(index), f"g{index // 4}")

    return tuple(map(sample, range(number)))


def _version(number: int) -> Any:
    from flows.records import DataVersion

    folder = Path("/nowhere")
    return DataVersion("0" * 32 + ".dir", "0" * 40, _samples(number), folder, (folder,))


def _plan(num_variants: int) -> Any:
    from flows.plan import parse_plan

    rates = [round(0.0001 * (1 + index), 6) for index in range(num_variants)]
    fit = {"learning_rate": rates}
    return parse_plan(
        {"name": "scale", "backbones": ["resnet18"], "weights": "none", "heads": ["linear"], "freeze": ["none"], "fit": fit}
    )


def _job(number: int, num_variants: int, storage: Path) -> Any:
    from flows.job.job import Job
    from flows.records import Workers
    from flows.stages.planning import make_work_plan

    version = _version(number)
    works = make_work_plan(_plan(num_variants), version).works
    return Job(
        "train", "scale", "scale", storage, version, {"breed": [f"breed_{n}" for n in range(NUM_CLASSES)]}, Workers(), works
    )


def render(number: int, _: int, folder: Path) -> tuple[Callable[[], object], Path | None]:
    """The flow writes the manifest."""
    from flows import manifest

    samples, file = _samples(number), folder / "manifest.csv"
    return (lambda: file.write_text(manifest.render(samples))), file


def parse(number: int, _: int, folder: Path) -> tuple[Callable[[], object], Path | None]:
    """The flow reads the manifest."""
    from flows import manifest

    file = folder / "manifest.csv"
    if not file.exists():
        file.write_text(manifest.render(_samples(number)))
        # So that the memory of rendering is not counted: the step runs in a process that only reads.
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return (lambda: manifest.parse(file.read_text())), None


def plan(number: int, num_variants: int, _: Path) -> tuple[Callable[[], object], Path | None]:
    """The flow checks the data and plans the works."""
    from flows.stages.planning import make_work_plan

    version, asked = _version(number), _plan(num_variants)
    return (lambda: make_work_plan(asked, version)), None


def begin(number: int, num_variants: int, folder: Path) -> tuple[Callable[[], object], Path | None]:
    """The flow writes a job's files."""
    from flows.job import job as jobs

    made = _job(number, num_variants, folder)
    return (lambda: jobs.write_job(made)), Path(made.folder.address)


def read(number: int, num_variants: int, folder: Path) -> tuple[Callable[[], object], Path | None]:
    """The driver, and each worker, reads a job's files."""
    from flows.job import job as jobs

    made = folder / "jobs" / "train-scale"
    if not made.exists():
        jobs.write_job(_job(number, num_variants, folder))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from flows.job.job_folder import JobFolder

    return (lambda: jobs.read_job(JobFolder.at(str(made)))), None


STEPS = {step.__name__: step for step in (render, parse, plan, begin, read)}


def _measure(name: str, number: int, num_variants: int, folder: Path) -> dict[str, float]:
    step, written = STEPS[name](number, num_variants, folder)
    before, started = _now_held(), time.process_time()
    result = step()
    seconds, peak = time.process_time() - started, _peak()
    size = sum(
        file.stat().st_size for file in (written.rglob("*") if written and written.is_dir() else [written] if written else [])
    )
    return {"seconds": seconds, "memory": max(0, peak - before), "kept": _kept(result), "bytes": size}


def _kept(value: object) -> int:
    """The memory of a result, each of its parts counted once."""
    seen: set[int] = set()
    total, left = 0, [value]
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            total += sys.getsizeof(one)
            left += gc.get_referents(one) if not isinstance(one, type | ModuleType | FunctionType) else []
    return total


def _now_held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print a line for each step and number of samples, with bytes and seconds a sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--variants", type=int, default=64)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.step:
        sys.stdout.write(json.dumps(_measure(asked.step, asked.samples[0], asked.variants, asked.folder)) + "\n")
        return
    each = "bytes a sample"
    sys.stdout.write(f"| samples | step | CPU s | us a sample | peak MB | {each} | kept MB | {each} | file MB | {each} |\n")
    for number in asked.samples:
        for name in STEPS:
            with tempfile.TemporaryDirectory() as folder:
                words = ["--step", name, "--samples", str(number), "--variants", str(asked.variants), "--folder", folder]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            cells = [f"{found['seconds']:.2f}", f"{1e6 * found['seconds'] / number:.1f}"]
            for key in ("memory", "kept", "bytes"):
                cells += [f"{found[key] / 1e6:.1f}", f"{found[key] / number:.0f}"]
            sys.stdout.write(f"| {number} | {name} | {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
