"""What a person owns in `data/` stays: only what an ingest brought, as it brought it, is replaced or removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flows import dataset
from flows.errors import AskedWrongly
from flows.landing import ingest, placing
from flows.manifest import parse
from tests.flows.test_landing import class_folders, draw, pairs, tree


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "source")


def own(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_mirror_leaves_what_no_ingest_brought(source: Path, data: Path) -> None:
    strangers = [
        own(data / name) for name in ("images/own/p.png", "images/ant/other.png", "masks/m.png", "notes.txt", "quarantine.csv")
    ]
    ingest(source, data, mirror=True)
    (source / "ant" / "1.png").unlink()
    assert ingest(source, data, mirror=True).removed == 1
    assert [path.read_text() for path in strangers] == ["mine"] * 5
    assert not (data / "images/ant/1.png").exists()


def refused(source: Path, data: Path, words: str, **settings: bool) -> None:
    before = tree(data)
    with pytest.raises(AskedWrongly, match=words):
        ingest(source, data, **settings)
    assert tree(data) == before


@pytest.mark.parametrize("mirror", [False, True])
def test_a_stranger_in_the_way_is_refused_counted_and_named(source: Path, data: Path, mirror: bool) -> None:
    own(data / "images/ant/0.png")
    own(data / "images/bee/7.png")
    refused(source, data, r"in the way \(2\): images/ant/0\.png, images/bee/7\.png", mirror=mirror)


def test_a_file_that_was_altered_by_hand_is_not_replaced_and_the_same_bytes_are_no_stranger(source: Path, data: Path) -> None:
    ingest(source, data)
    own(data / "images/ant/2.png", "drawn upon")
    refused(source, data, r"in the way \(1\): images/ant/2\.png\. Move it out")
    shutil.copy(source / "ant/2.png", data / "images/ant/2.png")
    assert ingest(source, data).unchanged == 40


def test_a_file_that_was_altered_by_hand_is_not_removed(source: Path, data: Path) -> None:
    ingest(source, data)
    drawn = own(data / "images/ant/2.png", "drawn upon")
    (source / "ant/2.png").unlink()
    assert ingest(source, data, mirror=True).removed == 1
    assert drawn.read_text() == "drawn upon"


def test_masks_are_removed_only_as_they_were_brought(tmp_path: Path, data: Path) -> None:
    source = pairs(tmp_path / "source", 40)
    ingest(source, data)
    own(data / "masks/3.png")
    for kind in ("images", "masks"):
        for index in (3, 4):
            (source / kind / f"{index}.png").unlink()
    ingest(source, data, mirror=True)
    assert {(kind, i) for kind in ("images", "masks") for i in (3, 4) if (data / kind / f"{i}.png").exists()} == {("masks", 3)}


def test_a_folder_where_a_file_belongs_and_a_file_where_a_folder_does_are_strangers(source: Path, data: Path) -> None:
    own(data / "images/ant/0.png/kept.txt")
    own(data / "images/bee")
    refused(source, data, r"in the way \(2\): images/ant/0\.png, images/bee\.")


@pytest.mark.parametrize("link", ["images", "images/ant"])
def test_nothing_is_written_or_removed_behind_a_link(source: Path, data: Path, link: str, tmp_path: Path) -> None:
    ingest(source, data)
    moved = tmp_path / "elsewhere"
    (data / link).rename(moved)
    (data / link).symlink_to(moved)
    before = tree(moved)
    (source / "ant/0.png").unlink()
    draw(source / "ant/new.png", 555)
    refused(source, data, rf"in the way \(1\): {link}\.", mirror=True)
    (source / "ant/new.png").unlink()
    ingest(source, data, mirror=True)
    assert tree(moved) == before


def test_links_to_a_persons_files_are_replaced_never_what_they_lead_to(source: Path, data: Path, tmp_path: Path) -> None:
    ingest(source, data)
    outside = tmp_path / "outside.png"
    (data / "images/ant/0.png").rename(outside)
    (data / "images/ant/0.png").symlink_to(outside)
    kept = outside.read_bytes()
    draw(source / "ant/0.png", 777)
    (source / "bee/1.png").unlink()
    ingest(source, data, mirror=True)
    assert outside.read_bytes() == kept


def test_a_data_folder_that_is_a_link_loses_only_what_an_ingest_brought(source: Path, data: Path, tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    mine = own(behind / "images/own/p.png")
    data.parent.mkdir(parents=True)
    data.symlink_to(behind)
    ingest(source, data, mirror=True)
    (source / "ant/0.png").unlink()
    ingest(source, data, mirror=True)
    assert mine.read_text() == "mine"
    assert not (behind / "images/ant/0.png").exists()
    data.unlink()
    data.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AskedWrongly, match="is no folder"):
        ingest(source, data)


TABLES = {
    "another manifest": ("manifest.csv", "name,size\na,1\n"),
    "a manifest of these columns": ("manifest.csv", "digest,file,split,label\nsha256:1,a.png,train,x\n"),
    "a manifest in latin-1": ("manifest.csv", "na\udce9me\n"),
    "other masks": ("masks.csv", "id,rle\n1,2\n"),
    "masks without a manifest": ("masks.csv", "file,digest,pixels\nmasks/a.png,x,0:1\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_the_persons_own_is_refused_without_the_advice_to_remove_the_folder(
    case: str, source: Path, data: Path
) -> None:
    name, text = TABLES[case]
    data.mkdir(parents=True)
    (data / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AskedWrongly, match=name) as error:
        ingest(source, data)
    assert "move it out of" in str(error.value)
    assert not re.search("remove the|delete", str(error.value), re.IGNORECASE)
    assert tree(data) == {name: text.encode(errors="surrogateescape")}


def test_a_quarantine_list_of_the_persons_own_is_neither_removed_nor_replaced(source: Path, data: Path) -> None:
    mine = own(data / "quarantine.csv", "file,why\na.png,blurred\n")
    ingest(source, data)
    assert mine.read_text() == "file,why\na.png,blurred\n"
    own(source / "ant" / "torn.png")
    refused(source, data, r"in the way \(1\): quarantine\.csv")
    mine.unlink()
    assert len(ingest(source, data).quarantined) == 1
    (source / "ant" / "torn.png").unlink()
    ingest(source, data, mirror=True)
    assert not mine.exists(), "its own list goes when nothing is in it"


def test_what_was_moved_in_before_an_ingest_was_cut_short_is_known_as_its_own(
    source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moved = os.replace, list[Path]()

    def cut_short(start: Path, goal: Path) -> None:
        if Path(goal).is_relative_to(data):
            moved.append(goal)
        if len(moved) > 5:
            raise KeyboardInterrupt
        replace(start, goal)

    with monkeypatch.context() as patch:
        patch.setattr(placing.os, "replace", cut_short)
        with pytest.raises(KeyboardInterrupt):
            ingest(source, data)
    assert len(tree(data)) == 5
    for index in range(20):
        draw(source / "ant" / f"{index}.png", 5000 + index)
    assert ingest(source, data).added == 40
    assert tree(data / "images") == tree(source)
    assert {sample.file for sample in parse((data / "manifest.csv").read_text())} == {f"images/{name}" for name in tree(source)}
    own(data / "images/ant/late.png")
    draw(source / "ant/late.png", 9)
    refused(source, data, r"in the way \(1\): images/ant/late\.png")


@pytest.fixture
def workspace(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of two versions, the second with one more image."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = dataset.init_workspace(tmp_path / "workspace")
    for seed in (555, 556):
        ingest(source, folder / "data")
        dataset.record_version(folder, f"before {seed}")
        draw(source / "ant" / f"new{seed}.png", seed)
    return folder


def test_neither_a_checkout_nor_a_restore_removes_what_no_version_holds(workspace: Path) -> None:
    newer, older = (version.revision for version in dataset.history(workspace))
    mine = own(workspace / "data/images/own/p.png")
    with pytest.raises(AskedWrongly, match=r"\(1\), e\.g\. images/own/p\.png"):
        dataset.checkout(workspace, older)
    pointer = (workspace / "data.dvc").read_text()
    subprocess.run(["git", "-C", str(workspace), "checkout", "--quiet", older, "--", "data.dvc"], check=True)
    with pytest.raises(AskedWrongly, match=r"\(1\), e\.g\. images/own/p\.png"):
        dataset.restore(workspace)
    (workspace / "data.dvc").write_text(pointer)
    (workspace / "data/manifest.csv").unlink()
    with pytest.raises(AskedWrongly, match=r"\(1\), e\.g\. images/own/p\.png"):
        dataset.restore(workspace)
    assert mine.read_text() == "mine"
    # A copy of what a version holds is a person's as well, by its name.
    shutil.copy(workspace / "data/images/ant/0.png", mine)
    with pytest.raises(AskedWrongly, match=r"\(1\), e\.g\. images/own/p\.png"):
        dataset.checkout(workspace, older)
    mine.unlink()
    assert dataset.checkout(workspace, newer).revision == newer


def test_a_table_that_was_damaged_comes_back_as_its_message_says(workspace: Path, source: Path) -> None:
    before = tree(workspace / "data")
    own(workspace / "data/manifest.csv", "file,split\n")
    with pytest.raises(AskedWrongly, match="move it away too, then run `headstart data checkout HEAD`"):
        ingest(source, workspace / "data")
    (workspace / "data/manifest.csv").unlink()
    dataset.checkout(workspace, "HEAD")
    assert tree(workspace / "data") == before
