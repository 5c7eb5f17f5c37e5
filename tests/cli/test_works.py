"""`headstart works`: which works stay and which go, in a folder and in a bucket, and what a kill in between leaves."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from flows import dataset, job, mlflow_tags
from flows.errors import Busy
from flows.local_copies import keep_here
from flows.places import Bucket, Folder, Root, StoredFile, open_place
from flows.records import DataVersion, Weights, Work, Workers
from flows.settings import Settings
from flows.stages import works
from flows.work_folder import WorkFolder, bundle_name
from heads import bundle
from heads.spec import Fit, Head, Variant
from tests import object_store
from tests.cli.conftest import Ask, make_workspace
from tests.flows.test_promotion import Versions

State = Literal["finished", "failed", "unfinished"]
DAY, DEAD, ADDRESS = 86_400.0, "http://127.0.0.1:9", "s3://pets/nights"
ENDS: dict[State, str] = {"finished": "result.json", "failed": "failure.json", "unfinished": "progress.json"}
NEEDED = {f"{name:0>8}" for name in ("c0", "b0", "d0", "a0", "e0", "1", "2", "3", "5")}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with data, whose registry has the works c0 (champion), b0, d0, a0 (waiting), f0, and e0 of another model."""
    folder = make_workspace(tmp_path_factory.mktemp("untouched") / "tiny", "")
    settings = Settings(workspace=folder)
    registry = Versions(settings.tracking, settings.storage / "ledger")
    for name, key in (("m", "c0"), ("m", "b0"), ("m", "d0"), ("m", "a0"), ("m", "f0"), ("other", "e0")):
        registry.register(name, work_key=f"{key:0>8}", data_version="old", variant_id="v")
    for name, alias, version in (
        ("m", "champion", "1"),
        ("m", "previous", "2"),
        ("m", "challenger", "3"),
        ("other", "champion", "1"),
    ):
        registry._client.set_registered_model_alias(name, alias, version)
    registry._client.set_model_version_tag("m", "4", mlflow_tags.WAITS, "e")
    return folder


@dataclass
class Nights:
    """A workspace, its storage, and works of many nights under it."""

    workspace: Path
    root: Root
    bucket: type[object_store.Bucket] | None

    @property
    def settings(self) -> Settings:
        return Settings(workspace=self.workspace, storage_root=self.root if self.bucket else None)

    def train(self, name: str, data: str = "old", days: float = 60, state: State = "finished", ended: bool = True) -> str:
        """Leave what a retraining of one work leaves: its job, its files, of so many days ago, and at its end a report."""
        key, seed = f"{name:0>8}", int(name, 16)
        variant = Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(seed=seed))
        version = DataVersion(data, "r" * 40, (), self.workspace / "data", ())
        job.write_job(job.Job("train", key, "m", self.root, version, {}, Workers(), works=(Work(key, variant, Weights("none")),)))
        place = open_place(self.root)
        files = {ENDS[state]: b"{}"}
        files |= {f"bundle/{bundle.SUMS}": key.encode(), "bundle/model": bytes(1000)} if state == "finished" else {}
        for file, content in files.items():
            place.write(f"work/{key}/{file}", content)
            if self.bucket:
                self.bucket.written_at["/".join(("nights", "work", key, file))] = time.time() - days * DAY
            elif isinstance(place, Folder):
                os.utime(place.path / "work" / key / file, (time.time() - days * DAY,) * 2)
        if ended:
            StoredFile(place, f"retrainings/{key}.json").write_json({})
        return key

    def left(self) -> set[str]:
        """The keys of the works of which anything is left."""
        return {name.partition("/")[0] for name in open_place(self.root).within("work").tree()}


@pytest.fixture(params=["folder", "bucket"])
def nights(request: pytest.FixtureRequest, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    """The works of which `NEEDED` are needed, and of the others all but the last are older than 30 days."""
    shutil.copytree(untouched, tmp_path / "tiny", symlinks=True)
    with object_store.serving(monkeypatch) as served:
        served.page_length = 1000
        in_bucket = request.param == "bucket"
        made = Nights(
            tmp_path / "tiny", ADDRESS if in_bucket else tmp_path / "tiny" / ".headstart", served if in_bucket else None
        )
        present = dataset.read_version(made.workspace).digest
        for name in ("c0", "b0", "d0", "a0", "e0", "f0"):
            made.train(name)
        made.train("1", data=present)
        made.train("2", data=present, state="failed")
        made.train("3", data=present, state="unfinished", ended=False)
        made.train("4")
        made.train("5", ended=False)
        made.train("6", state="failed")
        made.train("7", state="unfinished", ended=False)
        made.train("8", days=2)
        yield made


@pytest.fixture
def asked(ask: Ask, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The command on the nights' workspace and storage."""
    if nights.bucket:
        monkeypatch.setenv("HEADSTART_STORAGE_ROOT", ADDRESS)
    return lambda *words, **env: ask(nights.workspace, *words, **env)


def test_what_nothing_needs_and_is_old_goes_and_all_else_stays_whole(asked: Ask, nights: Nights) -> None:
    told = asked("works", "status", "--json").told
    assert (told["finished"], told["failed"], told["unfinished"]) == (10, 2, 2)
    assert (told["of_data_version"], told["in_use"], told["unlogged"], told["prunable"]) == (3, 5, 1, 5)
    before = nights.left()
    dry = asked("works", "prune", "--older-than", "30d", "--dry-run", "--json").told
    assert (dry["removed"], nights.left()) == (4, before)
    needed = {name: fact.stamp for name, fact in open_place(nights.root).within("work").tree().items() if name[:8] in NEEDED}
    done = asked("works", "prune", "--older-than", "30d", "--json").told
    assert {**done, "dry_run": True} == dry
    assert done["bytes"] == told["bytes"] - done["freed_bytes"] == asked("works", "status", "--json").told["bytes"]
    assert nights.left() == NEEDED | {"00000008"}
    said = asked("works", "prune", "--older-than", "12h").err
    assert all(words in " ".join(said.split()) for words in ("1 work removed", "1.0 kB freed", "mlflow gc"))
    kept = {name: fact.stamp for name, fact in open_place(nights.root).within("work").tree().items()}
    assert kept == needed
    assert "could be pruned" in asked("works", "status").out
    assert asked("models", "rollback", "m", "--reason", "it is worse at night").status in (0, None)
    assert asked("models", "list", "--json").told["models"][0]["champion"] == "2"


def test_a_removal_that_was_cut_short_leaves_nothing_that_seems_finished_and_the_next_one_ends_it(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bucket if nights.bucket else Folder, "clear", killed)
        with pytest.raises(KeyboardInterrupt):
            works.prune_works(nights.settings, 30 * DAY)
    assert not WorkFolder.of(nights.root, "00000004").is_finished()
    assert keep_here(open_place(nights.root).within(bundle_name("00000004"))) is None
    assert WorkFolder.of(nights.root, "00000006").is_finished()
    works.prune_works(nights.settings, 30 * DAY)
    assert nights.left() == NEEDED | {"00000008"}


def test_folders_that_no_training_made_are_left_alone(nights: Nights) -> None:
    place = open_place(nights.root).within("work")
    place.write("mine/notes.txt", "mine")
    place.write("copied/result.json", "{}")
    works.prune_works(nights.settings, -DAY)
    assert nights.left() == NEEDED | {"mine", "copied"}


def test_works_of_retrainings_that_did_not_end_go_where_that_is_asked_for(asked: Ask, nights: Nights) -> None:
    nights.train("9", data=dataset.read_version(nights.workspace).digest, ended=False)
    nights.train("c0", ended=False)
    asked("works", "prune", "--older-than", "30d", "--unlogged", "--json")
    assert nights.left() == NEEDED - {"00000005"} | {"00000008", "00000009"}


def test_nothing_is_pruned_while_the_registry_does_not_answer(asked: Ask, nights: Nights) -> None:
    before = nights.left()
    silent = asked("works", "prune", "--older-than", "0d", HEADSTART_TRACKING_ADDRESS=DEAD)
    assert (silent.status, "MLflow does not answer" in silent.err, nights.left()) == (2, True, before)


@pytest.mark.parametrize("nights", ["folder"], indirect=True)
def test_a_retraining_that_is_at_work_or_begins_stops_a_prune(
    asked: Ask, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nights.left()
    lock = nights.workspace / ".headstart" / "locks" / "pets"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("pid 7")
        file.flush()
        answer = asked("works", "prune", "--older-than", "0d")
    assert (answer.status, "pets, pid 7" in answer.err, nights.left()) == (2, True, before)
    looks = iter([None, None, "pets, pid 8"])
    monkeypatch.setattr(works, "at_work", lambda _: next(looks))
    with pytest.raises(Busy, match=r"pets, pid 8.*1 work removed until then"):
        works.prune_works(nights.settings, 30 * DAY)
    assert len(nights.left()) == len(before) - 1


@pytest.mark.parametrize("duration", ["nix", "-1d", "30", "1.5h", ""])
def test_a_duration_that_is_none_is_refused(ask: Ask, untouched: Path, duration: str) -> None:
    answer = ask(untouched, "works", "prune", f"--older-than={duration}")
    assert answer.status == 2
    assert "30d" in answer.err


def test_a_folder_that_is_no_workspace_is_refused(ask: Ask, tmp_path: Path) -> None:
    assert ask(tmp_path, "works", "status").status == 2
