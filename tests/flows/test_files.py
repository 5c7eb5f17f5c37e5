"""Files that appear whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.files import write_json, write_whole


def test_a_file_appears_in_a_new_folder_and_takes_the_place_of_another(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_whole(file, "é\r\n")
    assert file.read_bytes() == "é\r\n".encode()
    write_json(file, {"b": [1, None]})
    assert file.read_text() == '{"b": [1, null]}'
    assert os.listdir(file.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "before")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    write_whole(tmp_path / "token", "secret", mode=0o600)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
