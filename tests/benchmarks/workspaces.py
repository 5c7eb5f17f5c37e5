"""A new workspace, and `headstart` in it as a person runs it: what the benchmarks that retrain have in common."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("headstart")
# Where data sets and weights lie beside the project.
SHARED = ROOT.parent / "shared"
MOBILENET_V2 = SHARED / "weights" / "mobilenet_v2_from_int8-cf435c58.pth"


class Workspace:
    """A workspace with a data set in it."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART_", "PREFECT_", "MLFLOW_"))}
        self._env = kept | {"GIT_CONFIG_GLOBAL": str(folder.parent / "gitconfig")}
        folder.mkdir()
        self.run("init", ".")
        self.run("data", "ingest", str(source))

    def run(self, *words: str) -> str:
        """What the command prints on standard output. Raises SystemExit, with what it said, where it fails."""
        done = subprocess.run([str(COMMAND), *words], cwd=self.folder, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"headstart {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def retrain(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """The report of a retraining by this plan, which is written to a file as JSON, and so as YAML."""
        file = self.folder / f"{plan['name']}.yaml"
        file.write_text(json.dumps(plan, indent=2))
        report: dict[str, Any] = json.loads(self.run("retrain", str(file), "--json"))
        return report


@contextmanager
def workspace(source: Path, folder: Path | None) -> Iterator[Workspace]:
    """A workspace with `source` in it, below `folder`, gone in the end."""
    root = Path(tempfile.mkdtemp(prefix=f"headstart-{source.name}-", dir=folder))
    try:
        yield Workspace(root / "workspace", source)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)  # noqa: T201
