"""What cannot be read is not gone: a mirror removes what the source no longer has, and nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flows.errors import AskedWrongly
from flows.landing import ingest
from tests.flows.test_landing import class_folders, tree
from tests.powers import of_a_plain_person


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "data"


@pytest.fixture
def source(tmp_path: Path, data: Path) -> Path:
    """A source of three classes of twenty images, brought in."""
    source = class_folders(tmp_path / "source", classes=("ant", "bee", "wasp"))
    ingest(source, data)
    return source


def refused(source: Path, data: Path, words: str, **settings: float) -> None:
    before = tree(data)
    with pytest.raises(AskedWrongly, match=words):
        ingest(source, data, mirror=True, **settings)
    assert tree(data) == before


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o600])
def test_a_folder_without_permission_is_refused_by_name(source: Path, data: Path, mode: int) -> None:
    inner = source / "wasp" / "inner"
    inner.mkdir()
    (source / "wasp").chmod(mode)
    try:
        with of_a_plain_person():
            refused(source, data, re.escape(str(source / "wasp")), max_removed_share=1)
    finally:
        (source / "wasp").chmod(0o700)


def test_an_image_without_permission_is_a_bad_one_and_stays(source: Path, data: Path) -> None:
    (source / "ant/3.png").chmod(0)
    with of_a_plain_person():
        report = ingest(source, data, mirror=True)
    assert (report.removed, report.quarantined) == (0, (("ant/3.png", "Permission denied"),))
    assert (data / "images/ant/3.png").exists()
    for index in range(4):
        (source / f"ant/{index}.png").chmod(0)
    with of_a_plain_person():
        refused(source, data, "4 of 60 images are bad")


def test_a_source_that_is_missing_or_out_of_reach_is_refused(source: Path, data: Path) -> None:
    refused(source / "nowhere", data, "not a folder that exists", max_removed_share=1)
    locked = source.parent / "locked"
    locked.mkdir()
    source.rename(locked / "source")
    locked.chmod(0)
    try:
        with of_a_plain_person():
            refused(locked / "source", data, "cannot be read|not a folder that exists", max_removed_share=1)
    finally:
        locked.chmod(0o700)


def test_an_empty_folder_that_had_samples_looks_like_a_disk_that_is_not_mounted(source: Path, data: Path) -> None:
    class_folders(source, per_class=2, classes=("gnat",), first=900)
    ingest(source, data)
    shutil.rmtree(source / "gnat")
    (source / "gnat").mkdir()
    refused(source, data, "nothing lies at 'gnat' in the source any more.*2 samples came from there.*--max-removed-share 1")
    (source / "gnat").rmdir()
    (source / "gnat").symlink_to("not-mounted")
    refused(source, data, "nothing lies at 'gnat'")
    assert ingest(source, data).removed == 0
    (source / "gnat").unlink()
    assert ingest(source, data, mirror=True).removed == 2, "what is gone without a trace is removed"


def test_a_mirror_that_would_remove_a_large_share_is_refused_until_it_is_allowed(source: Path, data: Path) -> None:
    shutil.rmtree(source / "wasp")
    refused(source, data, r"would remove 20 of 60 samples \(33.3%\), more than the 10% allowed.*--max-removed-share 1")
    refused(source, data, "more than the 30% allowed", max_removed_share=0.3)
    assert ingest(source, data).removed == 0
    assert ingest(source, data, mirror=True, max_removed_share=0.4).removed == 20


def test_another_source_is_no_mirror_of_what_is_there(source: Path, data: Path, tmp_path: Path) -> None:
    refused(class_folders(tmp_path / "other", classes=("cat", "dog")), data, "would remove 60 of 60 samples")


def test_without_a_mirror_what_the_source_no_longer_has_stays_and_is_counted(source: Path, data: Path, tmp_path: Path) -> None:
    assert ingest(source, data).absent == 0
    for index in range(3):
        (source / f"ant/{index}.png").unlink()
    (source / "ant/3.png").write_bytes(b"torn")
    report = ingest(source, data)
    assert (report.absent, report.removed, report.num_samples) == (3, 0, 60)
    mirrored = ingest(source, data, mirror=True)
    assert (mirrored.absent, mirrored.removed) == (0, 3)
    assert ingest(class_folders(tmp_path / "other", 3, first=500), data).absent == 0, "another source lacks all, and says nothing"


def test_a_mirror_removes_a_few_without_being_asked_twice(source: Path, data: Path) -> None:
    for index in range(6):
        (source / f"ant/{index}.png").unlink()
    assert ingest(source, data, mirror=True).removed == 6


def test_classes_that_no_sample_has_any_more_are_named_in_one_warning(source: Path, data: Path) -> None:
    class_folders(source, 2, ("gnat", "fly"), first=900)
    assert not [warning for warning in ingest(source, data).warnings if "any more" in warning]
    shutil.rmtree(source / "gnat")
    shutil.rmtree(source / "fly")
    report = ingest(source, data, mirror=True)
    assert [warning for warning in report.warnings if "any more" in warning] == [
        "2 classes have no sample any more: 'fly' of label, 'gnat' of label; models trained from now on will not know them"
    ]
    assert not [warning for warning in ingest(source, data, mirror=True).warnings if "any more" in warning]
