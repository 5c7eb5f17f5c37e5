"""A new workspace, and `headstart` in it as a person runs it: what the benchmarks that retrain have in common."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from flows.cluster import processes
from flows.files import read_json
from flows.manifest import NAME, parse
from flows.records import Sample

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("headstart")
# Where data sets and weights lie beside the project.
SHARED = ROOT.parent / "shared"
MOBILENET_V2 = SHARED / "weights" / "mobilenet_v2_from_int8-cf435c58.pth"


class Workspace:
    """A workspace with a data set in it; its `environment` is set beside that of this process."""

    def __init__(self, folder: Path, source: Path, environment: Mapping[str, str] | None = None, command: Path = COMMAND) -> None:
        self.folder, self._command = folder, str(command)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART_", "PREFECT_", "MLFLOW_"))}
        self.env = kept | {"GIT_CONFIG_GLOBAL": str(folder.parent / "gitconfig")} | dict(environment or {})
        folder.mkdir()
        self.run("init", ".")
        self.run("data", "ingest", str(source))

    def run(self, *words: str) -> str:
        """What the command prints on standard output. Raises SystemExit, with what it said, where it fails."""
        done = subprocess.run([self._command, *words], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"headstart {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def retrain(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """The report of a retraining by this plan."""
        report: dict[str, Any] = json.loads(self.run("retrain", str(self.write(plan)), "--json"))
        return report

    def start(self, *words: str, output: Path, errors: Path) -> subprocess.Popen[bytes]:
        """The command, running on by itself, with what it prints in two files."""
        with output.open("wb") as out, errors.open("wb") as err:
            return subprocess.Popen([self._command, *words], cwd=self.folder, env=self.env, stdout=out, stderr=err)

    def write(self, plan: Mapping[str, Any]) -> Path:
        """The file of a plan, which is JSON, and so YAML."""
        file = self.folder / f"{plan['name']}.yaml"
        file.write_text(json.dumps(plan, indent=2))
        return file

    @property
    def storage(self) -> Path:
        """Where it keeps its cluster's record, and works, features and jobs, unless its environment names a storage root."""
        return self.folder / ".headstart"

    def samples(self, *splits: str) -> list[Sample]:
        """The samples of these splits of the data as last ingested; each one's `file` lies below the folder `data`."""
        return [sample for sample in parse((self.folder / "data" / NAME).read_text()) if sample.split in splits]

    def cluster_processes(self) -> list[psutil.Process]:
        """The live processes of this workspace's own local Ray: those that carry its mark, and their descendants."""
        record = read_json(self.storage / "ray" / "cluster.json")
        return processes.members(record["home"]) if record else []


@contextmanager
def workspace(source: Path, folder: Path | None) -> Iterator[Workspace]:
    """A workspace with `source` in it, below `folder`, gone in the end."""
    root = Path(tempfile.mkdtemp(prefix=f"headstart-{source.name}-", dir=folder))
    try:
        yield Workspace(root / "workspace", source)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def spread(source: Path, count: int | None = None, folders: str = "*") -> list[Path]:
    """The images of class folders, sorted; only so many of them, evenly spread, where `count` is given."""
    files = sorted(path for path in source.glob(f"{folders}/*/*") if path.is_file())
    if count is None or count >= len(files):
        return files
    return [files[number * len(files) // count] for number in range(count)]


def copy(files: Iterable[Path], source: Path, target: Path, times: int = 1) -> None:
    """Copies files of `source` to the same places below `target`; repeats have a few bytes more, and so digests of their own."""
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        for number in range(1, times):
            # Decoders pass over what comes after the end of a picture.
            place.with_stem(f"{place.stem}-{number}").write_bytes(file.read_bytes() + b"\0again %d" % number)


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)  # noqa: T201
