"""Paths in addresses: the file that an address names is the one that is meant, and never one beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from flows import addresses
from flows.errors import AskedWrongly
from flows.mlflow_connection import database_file
from flows.registry import Registry
from flows.settings import child_environment, read_settings
from flows.tracking import Tracker

ODD = "w %20#+&@ü;=,%zz"


@pytest.mark.parametrize("name", ["plain", "a b", "a%20b", "a#b", "ä+&@", "100%", ODD])
def test_an_address_names_the_file_that_is_meant(name: str) -> None:
    file = Path("/srv") / name / "mlflow.db"
    assert make_url(addresses.sqlite(file)).database == str(file)
    assert database_file(addresses.sqlite(file)) == file


def test_plain_paths_keep_the_addresses_that_tools_have_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert addresses.sqlite(Path("/srv/a b+ü/x.db")) == "sqlite:////srv/a b+ü/x.db"
    assert addresses.local(Path("/srv/a b+ü")) == "/srv/a b+ü"
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in child_environment(read_settings(tmp_path))


def test_mlflow_keeps_everything_inside_a_workspace_of_odd_letters(tmp_path: Path) -> None:
    settings = read_settings(tmp_path / ODD)
    tracker = Tracker(settings.tracking, settings.artifacts, "pets")
    assert Registry(settings.tracking, settings.storage / "ledger").versions("pets") == []
    run = tracker._client.create_run(tracker._experiment)
    (tmp_path / "note.txt").write_text("kept")
    tracker._client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt", ODD]
    (kept,) = settings.artifacts.rglob("note.txt")
    assert kept.read_text() == "kept"
    assert settings.storage.joinpath("mlflow.db").is_file()


@pytest.mark.parametrize("name", ["a?x=1", "it's", "a{0}", "a\\b", "a\nb", "a :b"])
def test_a_workspace_whose_path_a_tool_below_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AskedWrongly, match="a name without"):
        read_settings(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
