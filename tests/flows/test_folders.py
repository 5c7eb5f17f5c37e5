"""What lies in a folder: which files count, which links are followed, and what is passed over with a word or without."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from flows.errors import AskedWrongly
from flows.folders import HIDDEN, LOOP, NOWHERE, OTHERS, Contents, Passed, contents, describe_left_out, image_endings, is_image
from tests.powers import of_a_plain_person


def lay(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def names(found: Contents) -> list[str]:
    return [str(file) for file in found.files]


def passed(found: Contents) -> dict[str, str]:
    return {str(one.path): one.reason for one in found.passed}


def test_every_ending_that_pillow_reads_is_a_pictures_and_no_other() -> None:
    known = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".avif", ".jp2", ".tga", ".pbm", ".mpo"}
    assert known <= set(image_endings())
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".wmf", ".mp4", ".txt", ""} & set(image_endings())
    assert is_image("A.JPG")
    assert is_image("x.jpg.PNG")
    assert not is_image("jpg")


def test_files_come_in_the_order_of_their_folders(tmp_path: Path) -> None:
    lay(tmp_path, "b/2.png", "a/x/1.png", "a/3.png", "z.txt")
    assert names(contents(tmp_path)) == ["z.txt", "a/3.png", "a/x/1.png", "b/2.png"]
    assert contents(tmp_path).images == tuple(map(PurePosixPath, ("a/3.png", "a/x/1.png", "b/2.png")))


def test_what_systems_and_tools_leave_needs_no_word(tmp_path: Path) -> None:
    lay(tmp_path, ".DS_Store", "Thumbs.db", "a/desktop.ini", "a/._0.png", ".gitignore", "a/0.png")
    lay(tmp_path, ".git/x.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", "@eaDir/0.png", ".Trash-1000/0.png")
    assert (names(contents(tmp_path)), contents(tmp_path).passed) == (["a/0.png"], ())


def test_hidden_folders_and_pictures_are_passed_over_with_a_word(tmp_path: Path) -> None:
    found = contents(lay(tmp_path, ".net/0.png", "a/.0.png", "a/1.png"))
    assert (names(found), passed(found)) == (["a/1.png"], {".net": HIDDEN, "a/.0.png": HIDDEN})


def test_links_are_followed_but_never_round_in_a_circle(tmp_path: Path) -> None:
    lay(tmp_path / "elsewhere", "e/0.png")
    root = lay(tmp_path / "root", "a/0.png", "a/in/1.png")
    (root / "e").symlink_to("../elsewhere/e")
    (root / "a" / "linked.png").symlink_to("../../elsewhere/e/0.png")
    (root / "a" / "in" / "up").symlink_to("..")
    (root / "a" / "top").symlink_to(root)
    found = contents(root)
    assert names(found) == ["a/0.png", "a/linked.png", "a/in/1.png", "e/0.png"]
    assert passed(found) == {"a/in/up": LOOP, "a/top": LOOP}


def test_links_that_lead_nowhere_are_told_and_pictures_among_them_counted_as_bad_later(tmp_path: Path) -> None:
    root = lay(tmp_path, "a/0.png")
    (root / "e").symlink_to("missing")
    (root / "self").symlink_to("self")
    (root / "a" / "gone.png").symlink_to("missing.png")
    found = contents(root)
    assert (names(found), passed(found)) == (["a/0.png", "a/gone.png"], {"e": NOWHERE, "self": NOWHERE})


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    root = lay(tmp_path, "a/0.png", "b/in/1.png")
    (root / "b" / "in").chmod(0)
    try:
        with of_a_plain_person(), pytest.raises(AskedWrongly, match=re.escape(str(root / "b" / "in"))):
            contents(root)
    finally:
        (root / "b" / "in").chmod(0o700)
    with pytest.raises(AskedWrongly, match="cannot be read"):
        contents(root / "nowhere")


def test_ones_own_folders_are_passed_over_by_whatever_name_they_are_reached(tmp_path: Path) -> None:
    root = lay(tmp_path, "images/0.png", "data/images/0.png", "other/data/images/0.png", "other/.headstart/x.png")
    (root / "mine").symlink_to("data")
    assert len(contents(root).files) == 4, "without a folder of one's own nothing is"
    found = contents(root, (root / "data",))
    assert (names(found), passed(found)) == (["images/0.png"], {"other/data": OTHERS})


def test_what_is_left_out_is_counted_by_ending_and_named_by_reason() -> None:
    others = [PurePosixPath(name) for name in ("a/0.heic", "1.HEIC", "notes", "x.txt", "y.heic")]
    left = (Passed(PurePosixPath(".net"), HIDDEN), Passed(PurePosixPath("e"), NOWHERE))
    assert describe_left_out(others, left) == f"5 files (3 .heic, 1 no ending, 1 .txt); .net ({HIDDEN}); e ({NOWHERE})"
    assert describe_left_out([PurePosixPath(f"x.{number}") for number in range(11)], ()).endswith(", 3 more endings)")
    assert describe_left_out((), ()) == ""
