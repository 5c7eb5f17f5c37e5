"""What `data ingest` says and refuses, as a person sees it."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from flows import dataset
from flows.plan import parse_plan
from flows.settings import read_settings
from flows.stages.data import version_data
from flows.stages.session import Event, listening, open_session
from tests.cli.conftest import Ask


def test_a_mirror_removes_a_large_share_only_where_it_is_told_to(ask: Ask, tmp_path: Path) -> None:
    source, workspace = tmp_path / "source", tmp_path / "workspace"
    for number in range(30):
        (source / "abc"[number % 3]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(source / "abc"[number % 3] / f"{number}.png")
    (source / "a" / "0.heic").touch()
    dataset.init_workspace(workspace)
    assert ask(workspace, "data", "ingest", str(source)).status == 0
    shutil.rmtree(source / "c")
    answer = ask(workspace, "data", "ingest", str(source))
    assert (answer.status, "10 samples of the data version are not in this source" in answer.err) == (0, True), answer
    answer = ask(workspace, "data", "ingest", str(source), "--mirror")
    assert (answer.status, "would remove 10 of 30 samples" in answer.err) == (2, True), answer
    assert len(list((workspace / "data/images/c").iterdir())) == 10
    assert ask(workspace, "data", "ingest", str(source), "--mirror", "--max-removed-share", "2").status == 2
    answer = ask(workspace, "data", "ingest", str(source), "--mirror", "--max-removed-share", "1")
    assert (answer.status, "10 removed" in answer.err, "1 file (1 .heic)" in answer.err) == (0, True, True), answer


def test_samples_set_aside_are_told_by_the_first_five_and_the_list_of_all(ask: Ask, tmp_path: Path) -> None:
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(200)]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "labels.csv").write_text("\n".join(["text,kind", *rows, *[",a"] * 8]))
    dataset.init_workspace(tmp_path / "workspace")
    answer = ask(tmp_path / "workspace", "data", "ingest", str(tmp_path / "source"))
    assert (answer.status, answer.err.count("set aside row ")) == (0, 5), answer
    assert "3 more were set aside: data/quarantine.csv lists all 8" in answer.err


def test_a_night_tells_of_its_ingest_what_the_command_tells(ask: Ask, tmp_path: Path) -> None:
    source, workspace, told = tmp_path / "source", tmp_path / "workspace", list[Event]()
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(100)]
    source.mkdir()
    (source / "labels.csv").write_text("\n".join(["text,kind", *rows]))
    dataset.init_workspace(workspace)
    assert ask(workspace, "data", "ingest", str(source)).status == 0
    (source / "labels.csv").write_text("\n".join(["text,kind", *rows[10:], ",a", "new,b"]))
    with listening(told.append), open_session(read_settings(workspace), parse_plan({"name": "texts"})) as session:
        assert len(version_data(session, str(source)).samples) == 101
    lines = [event.text for event in told]
    assert lines[:2] == ["Warning: set aside row 92.txt: is empty", f"{source}: 1 added, 0 updated, 0 removed, 100 unchanged"]
    assert "10 samples of the data version are not in this source and stay" in str(lines[2])
