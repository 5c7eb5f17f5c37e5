"""The command in this process, and pictures to give it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from flows import cli, dataset
from flows.settings import read_settings
from flows.stages.data import ingest

SETTINGS = (
    *(f"HEADSTART_{name}" for name in ("WORKSPACE", "STORAGE_ROOT", "TRACKING_ADDRESS", "RAY_ADDRESS", "PREFECT_ADDRESS")),
    *("PREFECT_API_URL", "PREFECT_HOME", "NO_PROXY", "no_proxy", "PYTHONIOENCODING", "USER", "LOGNAME"),
)


class Answer(NamedTuple):
    """What the command ended with, and what it wrote."""

    status: object
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """The one JSON object that it printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """The command in this process, in a folder and with some environment."""
    before = signal.getsignal(signal.SIGTERM)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def run(folder: Path, *words: str, **env: str) -> Answer:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["headstart", *words])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        # A command sets its process's environment for its tools; the next one starts from the person's again.
        persons = dict(os.environ)
        with pytest.raises(SystemExit) as end:
            cli.main()
        os.environ.clear()
        os.environ |= persons
        return Answer(end.value.code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


def make_workspace(folder: Path, plan: str) -> Path:
    """A new workspace in the folder, with two classes of twenty pictures and `plan.yaml`."""
    source = folder.parent / "source"
    for number in range(40):
        file = source / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 200 * (number % 2), 7)).save(file)
    dataset.init_workspace(folder)
    ingest(read_settings(folder), str(source))
    (folder / "plan.yaml").write_text(plan)
    return folder
