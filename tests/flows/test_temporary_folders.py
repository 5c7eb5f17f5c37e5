"""Temporary folders that die with their owner."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows import temporary_folders

HOLD = """
import sys, tempfile
from flows import temporary_folders
copies = temporary_folders.of_this_process("copies")
with temporary_folders.temporaries("work") as folder:
    made = tempfile.mkdtemp(prefix="headstart-checkpoint-")
    print(folder, made, copies, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def _holder() -> tuple[subprocess.Popen[str], set[Path]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder, made, copies = map(Path, process.stdout.readline().split())
    assert made.is_relative_to(folder), "what libraries make lies in it"
    return process, {folder, copies}


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_stays(place: Path) -> None:
    killed, left = _holder()
    living, held = _holder()
    with killed, living:
        killed.kill()
        killed.wait()
        assert set(temporary_folders.sweep()) == left
        assert not any(folder.exists() for folder in left)
        assert all(folder.is_dir() for folder in held)
        assert living.stdin is not None
        living.stdin.close()
        living.wait(20)
    assert not any(folder.exists() for folder in held)


def test_folders_of_the_same_name_that_nobody_of_us_made_stay(place: Path) -> None:
    for name in ("headstart-work-mine", "headstart-resume-abc", "pymp-abc", "headstart-predict-photos"):
        (place / name).mkdir()
        (place / name / "file").write_text("a person's")
    (place / "headstart-work-link").symlink_to(place / "headstart-work-mine")
    assert temporary_folders.sweep() == []
    assert len(list(place.glob("*/file"))) == 5


def test_the_environment_is_as_before_behind_the_block(place: Path) -> None:
    with temporary_folders.temporaries("work") as folder:
        assert Path(tempfile.gettempdir()) == folder
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(place)
    assert not folder.exists()
