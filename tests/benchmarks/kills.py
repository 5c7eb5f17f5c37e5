"""A retraining killed at ten random moments of extraction and training, against the same one left alone: equal to the byte.

    python tests/benchmarks/kills.py [--kills 10] [--seed 0] [--images 600] [--image-size-px 128] [--epochs 6] [--views 4]
        [--storage folder|bucket] [--folder DIR]

A plan of frozen variants and of ones behind a stored cut, on a part of sign_digits, by two workers. It runs once to its end.
Then, in another workspace, `kill -9` meets at a random time after every start of work a random one of: a Ray Train worker, the
Ray job's driver, `headstart retrain` itself, which is then given again, as it is where it ended without success. What ends before
all kills are done begins anew in one more workspace. Only processes that carry the mark of the workspace's own cluster, or that
this script started, are killed.

Bars, in each workspace: every attempt announces no more images to forward than the store lacked when it began; the store holds
each sample's features once, but for a shard a worker and kill; the weights of every variant have the same bytes as those of the
undisturbed run, and measures, confusions, candidate and holdout are equal. Where bytes differ, by how much and whether stored
features do is told.
With `--storage bucket` the disturbed runs have their storage in a bucket of a real S3 server (`PYTHONPATH=.`, and what
`tests/integration/radosgw.py` needs), and the undisturbed one in a folder all the same.
Data and weights are taken from `../shared`. About 20 minutes on two cores. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import boto3
from mirror import Server
from safetensors.torch import load_file
from watched import LOOK_SECONDS, NUM_WORKERS, Run, running
from workspaces import MOBILENET_V2, SHARED, copy, say, spread

from flows.files import read_json

SOURCE = SHARED / "data" / "sign_digits"
SEARCH_SECONDS, STALL_SECONDS = 0.5, 900.0
# Of the undisturbed job's seconds, the latest that a kill comes after a start of work: several then fall into one job.
LATEST_SHARE = 0.5


def undisturbed(run: Run) -> None:
    """Waits for the command's end."""
    while not run.ended:
        time.sleep(LOOK_SECONDS)
        run.observe()
    settle(run)


def disturbed(run: Run, chance: random.Random, num_kills: int, latest_seconds: float, num_samples: int) -> None:
    """Kills so often, or until the work is done, and waits for the command's end."""
    changed_at = searched_at = time.monotonic()
    before: tuple[int, ...] = ()
    while not run.ended:
        time.sleep(LOOK_SECONDS)
        run.observe()
        now = (len(run.kills), len(run.starts), run.store.num_rows, len(run.attempts))
        changed_at, before = (time.monotonic(), now) if now != before else (changed_at, before)
        if time.monotonic() - changed_at > STALL_SECONDS:
            raise SystemExit(f"nothing happens since {STALL_SECONDS:.0f} s after {run.kills[-1:]}")
        if len(run.kills) < num_kills and time.monotonic() - searched_at >= SEARCH_SECONDS:
            if run.at_work():
                run.disturb(chance, latest_seconds, num_samples)
            searched_at = time.monotonic()
    settle(run)


def settle(run: Run) -> None:
    """Takes note of the end, of a bucket too."""
    if run.mirror:
        run.mirror.look()
    run.observe()


def verdict(run: Run, alone: Run) -> list[str]:
    """The bars that a disturbed run misses, in words."""
    missed, store = [], run.store
    num_samples, most = alone.store.num_keys, NUM_WORKERS * len(run.kills) * max(alone.store.largest, store.largest)
    for number, attempt in enumerate(run.attempts):
        if attempt.num_to_forward > num_samples - attempt.num_held:
            missed.append(f"attempt {number} forwards {attempt.num_to_forward}, and the store held {attempt.num_held}")
    if store.keys() != alone.store.keys():
        missed.append(f"the store holds {store.num_keys} samples, the undisturbed one {num_samples}")
    if store.num_rows - store.num_keys > most:
        missed.append(f"{store.num_rows - store.num_keys} samples are stored twice; unfinished shards explain {most}")
    works = sorted(folder.name for folder in (alone.kept / "work").iterdir())
    for name in works:
        missed += compare(name, *(each.kept / "work" / name for each in (run, alone)))
    reports = run.report, alone.report
    missed += [f"the {name} differs" for name in ("candidate", "holdout") if reports[0][name] != reports[1][name]]
    if missed:
        num_different, gap = store.gap(alone.store)
        missed.append(f"{num_different} stored features differ, by at most {gap:.1e}")
    return missed


def compare(name: str, folder: Path, other: Path) -> list[str]:
    """In what a variant differs between two runs."""
    files = [each / "bundle" / "weights.safetensors" for each in (folder, other)]
    results = [read_json(each / "result.json", {}) for each in (folder, other)]
    if not all(file.exists() for file in files):
        return [f"{name} is not there"]
    parts = ("metrics", "confusion", "best_epoch", "ended")
    missed = [f"{part} of {name} differ" for part in parts if results[0].get(part) != results[1].get(part)]
    if files[0].read_bytes() != files[1].read_bytes():
        first, second = map(load_file, files)
        gap = max(float((weights.double() - second[key].double()).abs().max()) for key, weights in first.items())
        missed.append(f"weights of {name} ({results[0]['variant']['freeze']}) differ by at most {gap:.1e}")
    return missed


def show(number: int, run: Run) -> None:
    """The kills, attempts and ends of a run as tables."""
    say(f"run {number}: the command was given {len(run.starts)} times")
    say("  kill  victim   pid      after   what was being done")
    for index, kill in enumerate(run.kills):
        say(f"  {index:>4}  {kill.victim:<7}  {kill.pid:<7} {kill.after_seconds:5.1f} s  {kill.phase}")
    for index, attempt in enumerate(run.attempts):
        say(f"  attempt {index}: {attempt.num_to_forward} to forward, {attempt.num_held} held before")
    for text in run.starts:
        say(f"  command {text or 'ended with 0'}")
    say(f"  stored {run.store.num_rows} samples, {run.store.num_keys} different ones; the last command counts "
        f"{run.report['counts']['trunk_forwards']} forwarded")  # fmt: skip


def plan(asked: argparse.Namespace) -> dict[str, Any]:
    """Two frozen variants and two behind a stored cut, on several stored views."""
    fit = {"epochs": asked.epochs, "batch_size": 32, "image_size_px": asked.image_size_px, "augment": "light", "seed": 0}
    common = {"name": "kills", "backbones": ["mobilenet_v2"], "weights": str(MOBILENET_V2), "heads": ["linear", "mlp"]}
    fit["views"] = asked.views
    return common | {"freeze": ["all", "upto:stage5"], "fit": fit, "workers": {"count": NUM_WORKERS}}


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A real S3 server with a bucket for the runs, in folders below `root`."""
    from tests.integration import radosgw

    (root / "store").mkdir()
    with radosgw.serving(root / "store") as server:
        keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        client = boto3.client("s3", endpoint_url=server.endpoint, region_name=radosgw.REGION, **keys)
        client.create_bucket(Bucket="kills")
        yield Server("s3://kills", server.environment(), client)


def main() -> int:
    """The exit status: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--image-size-px", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--storage", choices=("folder", "bucket"), default="folder")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    chance, missed, num_done, number = random.Random(asked.seed), [], 0, 0
    with tempfile.TemporaryDirectory(prefix="headstart-kills-", dir=asked.folder, ignore_cleanup_errors=True) as name:
        root = Path(name)
        copy(spread(SOURCE, asked.images), SOURCE, root / "source")
        with running(root / "alone", root / "source", plan(asked)) as alone:
            undisturbed(alone)
        seconds, num_samples = float(alone.report["seconds"]["train"]), alone.store.num_keys
        say(f"undisturbed: {seconds:.1f} s of extraction and training, {num_samples} samples forwarded, "
            f"{alone.report['counts']['trunk_forwards']} counted")  # fmt: skip
        with serving(root) if asked.storage == "bucket" else nullcontext() as server:
            while num_done < asked.kills:
                number += 1
                with running(root / f"run-{number}", root / "source", plan(asked), server) as run:
                    disturbed(run, chance, asked.kills - num_done, LATEST_SHARE * seconds, num_samples)
                num_done += len(run.kills)
                show(number, run)
                found = verdict(run, alone)
                missed += found
                say("  equal to the byte, nothing stored was forwarded again" if not found else "  NO: " + "; ".join(found))
    say(f"{num_done} kills in {number} runs: {'every bar is met' if not missed else f'{len(missed)} differences'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
