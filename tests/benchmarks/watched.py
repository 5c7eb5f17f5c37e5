"""A retraining as seen from outside while it runs: what its store holds, what its attempts announce, and whom to kill."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from mirror import Mirror, Server, following
from safetensors import safe_open
from safetensors.torch import load_file
from workspaces import Workspace

from flows.cluster import processes
from flows.files import read_json
from flows.places import Folder
from flows.work_folder import WorkFolder

VICTIMS = ("worker", "driver", "command")
NUM_WORKERS = 2
# A digest's 16 bytes and a view's 4, as the store packs them.
KEY_BYTES = 20
LOOK_SECONDS, GONE_SECONDS = 0.1, 20.0


@dataclass(frozen=True)
class Kill:
    """What was killed, how many seconds after the start of work, and what was being done."""

    victim: str
    pid: int
    after_seconds: float
    phase: str


@dataclass(frozen=True)
class Attempt:
    """What an attempt announced that it has to forward, and what the store held before that."""

    num_to_forward: int
    num_held: int


class Store:
    """The feature store of a workspace, its shards read as the safetensors files that they are.

    `num_keys` counts the different samples, by view; `num_rows` those that lie in two shards twice. `largest` is the samples of
    the largest shard.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # By file the keys of its rows: the digest and the view of a sample.
        self._shards: dict[Path, list[bytes]] = {}
        self.num_keys = self.num_rows = self.largest = 0

    def look(self) -> None:
        """Takes note of new shards."""
        new = [file for file in self.root.glob("*/*.safetensors") if file not in self._shards]
        for file in new:
            with safe_open(file, "pt") as shard:
                packed = base64.b64decode(json.loads(shard.metadata()["shard"])["keys"])
            self._shards[file] = [packed[place : place + KEY_BYTES] for place in range(0, len(packed), KEY_BYTES)]
        if new:
            self.num_keys = sum(map(len, self.keys().values()))
            self.num_rows = sum(map(len, self._shards.values()))
            self.largest = max(map(len, self._shards.values()))

    def keys(self) -> dict[str, set[bytes]]:
        """The different keys of each trunk."""
        found: dict[str, set[bytes]] = {}
        for file, keys in self._shards.items():
            found.setdefault(file.parent.name, set()).update(keys)
        return found

    def gap(self, other: Store) -> tuple[int, float]:
        """How many samples of the same key and tap differ in any bit, and by how much at most."""
        num_different, most = 0, 0.0
        theirs = other.features()
        for name, rows in self.features().items():
            if name in theirs and not torch.equal(rows, theirs[name]):
                num_different, most = num_different + 1, max(most, float((rows - theirs[name]).abs().max()))
        return num_different, most

    def features(self) -> dict[tuple[str, str, bytes], torch.Tensor]:
        """All that is stored by trunk, tap and key."""
        found: dict[tuple[str, str, bytes], torch.Tensor] = {}
        for file, keys in sorted(self._shards.items()):
            for tap, rows in load_file(file).items():
                found |= {(file.parent.name, tap, key): row for key, row in zip(keys, rows, strict=True)}
        return found


class Run:
    """A workspace in which one plan is retrained, watched from outside and disturbed."""

    def __init__(self, root: Path, source: Path, plan: dict[str, Any], server: Server | None = None) -> None:
        root.mkdir()
        self.root, self.mirror, environment = root, None, dict[str, str]()
        if server:
            self.mirror = Mirror(f"{server.address}/{root.name}", root / "mirror", server.client)
            environment = {**server.environment, "XDG_CACHE_HOME": str(root / "cache")}
            environment["HEADSTART_STORAGE_ROOT"] = self.mirror.address
        self.place = Workspace(root / "workspace", source, environment)
        # What is watched: the storage, or the folder that follows it.
        self.kept = self.mirror.folder if self.mirror else self.place.storage
        self.plan, self.store = self.place.write(plan), Store(self.kept / "features")
        self.kills: list[Kill] = []
        self.attempts: list[Attempt] = []
        self.starts: list[str] = []
        self._announced_at, self._history = 0, [(0, 0)]
        self.start()

    def start(self) -> None:
        """Gives the command, once more if it was given before."""
        self._count = len(self.starts)
        output, errors = (self.root / f"{kind}-{self._count}" for kind in ("out", "err"))
        self.command = self.place.start("retrain", str(self.plan), "--json", output=output, errors=errors)
        self.starts.append("")

    @property
    def ended(self) -> bool:
        """Whether the command ended with success; one that ended otherwise is given again."""
        status: int | None = self.command.poll()
        if status:
            text = (self.root / f"err-{self._count}").read_text().strip().splitlines()
            self.starts[-1] = f"ended with {status}: {text[-1] if text else ''}"
            if not self.kills or len(self.starts) > 3 * len(self.kills) + 1:
                raise SystemExit(f"headstart retrain {self.starts[-1]}")
            self.start()
        return status == 0

    @property
    def report(self) -> dict[str, Any]:
        """What the command that ended with success printed."""
        found: dict[str, Any] = json.loads((self.root / f"out-{self._count}").read_text())
        return found

    @property
    def job(self) -> Path | None:
        """The folder of the training job."""
        return next(iter((self.kept / "jobs").glob("train-*")), None)

    @property
    def _jobs(self) -> str:
        return f"{self.mirror.address}/jobs/" if self.mirror else f"{self.kept}/jobs/"

    def observe(self) -> None:
        """Takes note of new shards and of an attempt that announces what it has to forward."""
        now = time.time_ns()
        self.store.look()
        self._history.append((now, self.store.num_keys))
        if self.job is None or not (self.job / "features.json").exists():
            return
        with suppress(FileNotFoundError):  # a new submission removes it
            file = self.job / "features.json"
            announced_at, total = file.stat().st_mtime_ns, read_json(file)["total"]
            # Both workers announce the same, within a moment.
            if announced_at - self._announced_at > 2e9:
                noted = sum(read_json(each, {"num_samples": 0})["num_samples"] for each in self.job.glob("stored-*.json"))
                held = max(count for at, count in self._history if at < announced_at)
                self.attempts.append(Attempt(total - noted, held))
            self._announced_at = announced_at

    def at_work(self) -> dict[str, list[psutil.Process]]:
        """What may be killed, by victim: nothing unless a driver has all its workers, and these have begun."""
        if self.job is None or (self.job / "outcome.json").exists():
            return {}
        mine, drivers, workers = self.place.cluster_processes(), [], []
        for process in mine:
            with suppress(psutil.Error):
                words = process.cmdline()
                if "flows.job" in words and any(word.startswith(self._jobs) for word in words):
                    drivers.append(process)
                elif process.name().startswith("ray::RayTrain"):
                    workers.append(process)
        begun = self._announced_at / 1e9
        if len(drivers) != 1 or len(workers) != NUM_WORKERS:
            return {}
        if not drivers[0].create_time() < min(w.create_time() for w in workers) < begun:
            return {}
        return {"worker": workers, "driver": drivers, "command": [psutil.Process(self.command.pid)]}

    def phase(self, num_samples: int) -> str:
        """What the job is doing, in words."""
        if self.store.num_keys < num_samples:
            return f"extraction, {self.store.num_keys} of {num_samples} stored"
        folders = list((self.kept / "work").glob("*"))
        epochs = sum(len(read_json(folder / "progress.json", {"epochs": []})["epochs"]) for folder in folders)
        done = sum(WorkFolder(Folder(folder)).is_finished() for folder in folders)
        return f"training, {done} variants done, {epochs} epochs told"

    def disturb(self, chance: random.Random, latest_seconds: float, num_samples: int) -> None:
        """Kills something at a random time from now on, unless the work ends before."""
        victim, delay, since = chance.choice(VICTIMS), chance.uniform(0, latest_seconds), time.monotonic()
        while time.monotonic() - since < delay:
            time.sleep(LOOK_SECONDS)
            self.observe()
            if self.ended:
                return
        found = self.at_work()
        if not found:
            return
        process = chance.choice(sorted(found[victim], key=lambda each: each.pid))
        phase = self.phase(num_samples)
        os.kill(process.pid, signal.SIGKILL)
        self.kills.append(Kill(victim, process.pid, time.monotonic() - since, phase))
        if victim == "command":
            self.command.wait()
            self.starts[-1] = "killed"
            self.start()
        end_at = time.monotonic() + GONE_SECONDS
        while process in self.place.cluster_processes() and time.monotonic() < end_at:
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """Ends what the workspace still runs; nothing after a command that ended by itself."""
        if self.command.poll() is None:
            self.command.terminate()
            self.command.wait()
        if record := read_json(self.place.storage / "ray" / "cluster.json"):
            processes.end(record["home"])


@contextmanager
def running(root: Path, source: Path, plan: dict[str, Any], server: Server | None = None) -> Iterator[Run]:
    """A run, with its storage in a bucket of the server if there is one, whose processes are gone in the end."""
    run = Run(root, source, plan, server)
    try:
        with following(run.mirror) if run.mirror else nullcontext():
            yield run
    finally:
        run.close()
