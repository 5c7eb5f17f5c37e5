"""A workspace of handwritten digits, and the command as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("headstart")

PLAN = """
name: digits
backbones: [shufflenet_v2_x1_0]
weights: none
heads: [linear, mlp]
freeze: [none]
fit: {epochs: 4, batch_size: 64, learning_rate: 0.003, image_size_px: 32, seed: 0}
workers: {count: 2}
"""


class Workspace:
    """A workspace and the command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / ".headstart"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART_", "PREFECT_", "MLFLOW_"))}
        self.env = kept | {"GIT_CONFIG_GLOBAL": str(folder.parent / "gitconfig")}

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """The command, started in a process group of its own; its output goes to a file."""
        return self._begin([str(COMMAND), *words], self.env)

    def start_module(self, name: str, *words: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A module of this environment as a program, started as the command is, with more in its environment."""
        return self._begin([sys.executable, "-m", name, *words], self.env | dict(env))

    def _begin(self, program: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder.parent / "output.log").open("ab") as log:
            return subprocess.Popen(program, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def run(self, *words: str, status: int = 0) -> str:
        """What the command prints on standard output; it must end with `status`."""
        done = self.try_to(*words)
        assert done.returncode == status, f"headstart {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return done.stdout

    def try_to(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command, run to its end, however that is."""
        return subprocess.run([str(COMMAND), *words], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)

    def json(self, *words: str) -> dict[str, Any]:
        """The one JSON object that the command prints."""
        told: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return told


def wait_for(what: str, is_so: Callable[[], Any], seconds: float) -> Any:
    """What `is_so` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := is_so():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def with_digits(folder: Path, plan: str) -> Workspace:
    """A new workspace in a folder, with the digits in it and this `plan.yaml`; nothing trained yet."""
    workspace = Workspace(folder)
    workspace.folder.mkdir()
    workspace.run("init", ".")
    workspace.run("data", "ingest", "digits")
    (workspace.folder / "plan.yaml").write_text(plan)
    return workspace


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the digits in it and PLAN."""
    return with_digits(tmp_path_factory.mktemp("end") / "digits", PLAN)
