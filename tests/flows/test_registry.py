"""The registry against a real SQLite database, with a real bundle, and a consumer that has MLflow, torch and numpy only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from flows.cli import models
from flows.errors import AskedWrongly, HeadstartError
from flows.model_version import ModelVersion
from flows.places import Folder, StoredFile
from flows.pulling import placing
from flows.records import Finding, Verdict, Weights, Work
from flows.registry import Registry, ledger, program, read_holdout, telling
from flows.registry.catalog import ModelRow
from flows.registry.ledger import LedgerEntry, champion_at
from flows.settings import read_settings
from flows.stages import delivery
from flows.tracking import Origin, Tracker
from heads import bundle as bundles
from heads.bundle.program import export_program
from heads.data.image_transforms import preprocess_for
from heads.data.modalities import preprocess_of
from heads.errors import BundleError
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from heads.tasks.bio import tag_names

VARIANT = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), fit=Fit(image_size_px=48))
CLASSES = {"label": ("ant", "bee", "wasp")}
YES = Verdict(True, ("it is better: 12 against 2 samples, p = 0.013",), {"p": 0.013})
NO = Verdict(False, ("it is not better: 3 against 4 samples, p = 1.0",), {"p": 1.0})


@dataclass
class Place:
    """A registry and what is registered in it: a bundle, and a run for each work."""

    address: str
    bundle: Path
    tracker: Tracker
    folder: Path

    def registry(self, ledger_folder: str = "ledger") -> Registry:
        return Registry(self.address, self.folder / ledger_folder)

    def register(self, name: str, work_key: str, registry: Registry | None = None) -> ModelVersion:
        """A version of `work_key`; the program itself is exported once and its model shared by all works."""
        parent = self.tracker.start_retraining("key", ORIGIN)
        run_id = self.tracker.start_variant(parent, Work(work_key, VARIANT, Weights("none")), ORIGIN)
        return (registry or self.registry()).register(
            name,
            bundle=self.bundle,
            run_id=run_id,
            work_key=work_key,
            variant_id=VARIANT.variant_id,
            data_version="v1",
            git_commit="c0ffee",
            metrics={"label/accuracy": 0.9},
        )


# Images, height, width: square, of the network's own size, wide, tall, and a strip that is cut.
SHAPES = ((1, 60, 60), (2, 48, 48), (1, 48, 100), (5, 131, 77), (2, 20, 300))
ORIGIN = Origin("v1", "rev1", "/data/objects")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("registry")
    address = f"sqlite:///{folder / 'mlflow.db'}"
    model = build_model(VARIANT, CLASSES, None)
    preprocess = preprocess_for("squeezenet1_1", 48)
    bundle = bundles.save(folder / "bundle", model=model, variant=VARIANT, classes=CLASSES, preprocess=preprocess, facts={})
    return Place(address, bundle, Tracker(address, folder / "artifacts", "pets"), folder)


@pytest.fixture(scope="module")
def first(place: Place) -> ModelVersion:
    """Version 1 of `digits`, exported for real, and champion."""
    made = place.register("digits", "work1")
    return place.registry().promote("digits", made.version, YES)


@pytest.fixture
def name(place: Place, first: ModelVersion, request: pytest.FixtureRequest) -> str:
    """A model of its own for the test, whose versions share the one exported program."""
    return str(request.node.name)


def add(place: Place, first: ModelVersion, name: str, work_key: str) -> ModelVersion:
    """Another version, made from the model that is exported already: exporting each would cost seconds."""
    client = place.registry()._client
    source = str(client.get_model_version("digits", first.version).source)
    if not place.registry().versions(name):
        client.create_registered_model(name)
    tags = {"headstart.work_key": work_key, "headstart.data_version": f"data-{work_key}", "headstart.variant_id": "v"}
    made = client.create_model_version(name, source, tags=tags)
    return place.registry().find(name, str(made.version))


def aliases(place: Place, name: str) -> dict[str, str]:
    return {alias: version.version for alias, version in place.registry().current(name).items()}


def test_a_registered_version_says_where_it_comes_from(place: Place, first: ModelVersion) -> None:
    assert (first.name, first.version, first.aliases) == ("digits", "1", ("champion",))
    assert first.tags["headstart.data_version"] == "v1"
    assert first.tags["headstart.variant_id"] == VARIANT.variant_id
    assert first.tags["headstart.git_commit"] == "c0ffee"
    assert read_holdout(first.tags) == {"label/accuracy": 0.9}
    assert first.tags["headstart.verdict"] == f"promoted\n{YES.reasons[0]}"
    run = place.tracker._client.get_run(first.tags["headstart.run_id"])
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1


def test_a_version_and_its_model_are_described_by_the_card_and_no_tag_is_json(place: Place, first: ModelVersion) -> None:
    client, card = place.registry()._client, (place.bundle / "card.md").read_text()
    version, model = client.get_model_version("digits", first.version), client.get_registered_model("digits")
    assert version.description == f"**On the holdout:** label/accuracy 0.9000\n\n{card}"
    assert model.description.startswith("**Champion: version 1.**")
    assert card in model.description
    assert [key for key, value in first.tags.items() if value.lstrip().startswith(("{", "["))] == []
    assert place.registry().card("digits", "champion") == card


def test_the_models_description_follows_its_champion_unless_a_person_wrote_it(
    place: Place, first: ModelVersion, name: str
) -> None:
    registry, client = place.registry(), place.registry()._client

    def described() -> str:
        return str(client.get_registered_model(name).description)

    for number, key in enumerate(("a", "b", "c"), start=1):
        add(place, first, name, key)
        client.update_model_version(name, str(number), f"card {key}")
        registry.promote(name, str(number), YES)
        assert f"version {number}" in described()
    registry.rollback(name)
    assert described().startswith("**Champion: version 2.**")
    assert described().endswith("card b")
    client.update_registered_model(name, "Ours to say.")
    registry.rollback(name)
    assert described() == "Ours to say."


def test_measures_of_many_classes_are_cut_at_whole_lines_and_read_as_they_are() -> None:
    metrics = {f"mask/iou of {n} | ü": n / 7 for n in range(1000)} | {"mask/miou": float("nan")}
    tag = telling.holdout_tag(metrics)
    assert len(tag) <= 5000
    told = read_holdout({"headstart.holdout": tag})
    assert told == pytest.approx(dict(list(metrics.items())[: len(told)]))
    assert len(told) > 100
    assert read_holdout({"headstart.metrics": '{"a/accuracy": 0.5}'}) == {"a/accuracy": 0.5}, "as versions of before tell it"
    assert read_holdout({"headstart.metrics": '{"a/accuracy": 0.5, "a/lo'}) == {}


def test_a_card_too_long_for_a_description_says_where_the_rest_is() -> None:
    text = telling.describe_version("# A card\n\n```python\n" + "line\n" * 2000, {})
    assert len(text) <= 5000
    assert text.count("```") == 2
    assert "bundle/card.md" in text


def test_registering_the_same_work_again_gives_the_same_version(place: Place, first: ModelVersion) -> None:
    assert place.register("digits", "work1") == first
    assert len(place.registry().versions("digits")) == 1


def test_a_crash_between_the_model_and_its_version_makes_no_second_model(place: Place, first: ModelVersion, name: str) -> None:
    run = place.tracker._client.get_run(first.tags["headstart.run_id"])
    assert place.register(name, "work1").version == "1", "the same work under a name that has no version of it yet"
    assert len(place.tracker._client.search_logged_models([run.info.experiment_id])) == 1


def test_no_file_of_the_registered_model_is_a_pickle(place: Place, first: ModelVersion) -> None:
    folder = Path(place.registry()._client.get_model_version_download_uri("digits", first.version))
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"MLmodel", "data/model.pt2", "bundle/weights.safetensors", "bundle/SHA256SUMS"} <= files
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pth", ".pt"))]
    requirements = (folder / "requirements.txt").read_text().split()
    assert sorted(line.partition("==")[0] for line in requirements) == ["mlflow", "numpy", "torch"]


CONSUMER = """
import sys
import threading
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"heads", "flows", "torchvision", "ray", "prefect", "dvc", "boto3", "safetensors", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits@champion")
for file in sys.argv[2:]:
    numpy.save(file + ".out.npy", model.predict(numpy.load(file)))
"""


def test_the_champion_in_plain_mlflow_reads_as_the_bundle_does(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (num, height, width, 3), dtype=np.uint8) for num, height, width in SHAPES]
    files = [str(tmp_path / f"{number}.npy") for number in range(len(batches))]
    for file, batch in zip(files, batches, strict=True):
        np.save(file, batch)
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "DO_NOT_TRACK": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", CONSUMER, place.address, *files]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    bundle = bundles.load(place.bundle)
    for file, batch in zip(files, batches, strict=True):
        found = np.load(file + ".out.npy")
        wanted = [[told["label"].probabilities[label] for label in CLASSES["label"]] for told in bundle.predict(list(batch))]
        assert found.sum(axis=1) == pytest.approx(np.ones(len(batch)), abs=1e-5)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_pulled_bundle_is_the_one_registered(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for which, dest in (("champion", tmp_path / "new" / "bundle"), ("1", tmp_path / "empty")):
        assert place.registry().pull("digits", which, dest) == place.registry().find("digits", "1")
        assert bundles.digest(dest) == bundles.digest(place.bundle)
        assert [path.name for path in dest.parent.iterdir() if path.name.startswith(".")] == [], "no half download is left behind"


def test_a_folder_that_holds_something_is_not_pulled_over(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(AskedWrongly, match="in the way"):
            place.registry().pull("digits", "champion", taken)
    assert (tmp_path / "mine").read_text() == "precious"


def other_bundle(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "elk")) -> Path:
    """Another whole bundle."""
    model = build_model(VARIANT, {"label": classes}, None)
    preprocess = preprocess_for("squeezenet1_1", 48)
    return bundles.save(folder, model=model, variant=VARIANT, classes={"label": classes}, preprocess=preprocess, facts={})


def test_a_folder_that_was_pulled_before_gives_way_to_the_newer_version(
    place: Place, first: ModelVersion, name: str, tmp_path: Path
) -> None:
    registry, dest = place.registry(), tmp_path / "live"
    add(place, first, name, "a")
    registry._client.set_model_version_tag(name, "1", "headstart.bundle_digest", bundles.digest(other_bundle(dest)))
    add(place, first, name, "b")
    assert registry.pull(name, "2", dest).version == "2"
    assert bundles.digest(dest) == bundles.digest(place.bundle)
    inode = dest.stat().st_ino
    assert registry.pull(name, "2", dest).version == "2"
    assert dest.stat().st_ino == inode, "what is there already is not fetched again"
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


def test_a_version_is_published_and_pulled_from_there_by_the_command(
    place: Place, first: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_TRACKING_ADDRESS", place.address)
    told = CliRunner().invoke(models.app, ["publish", "digits", str(tmp_path / "out"), "--json", "--workspace", str(tmp_path)])
    assert told.exit_code == 0, told.output
    pointer = json.loads(told.stdout)
    assert (pointer["is_new"], pointer["version"], pointer["digest"]) == (True, "1", bundles.digest(place.bundle))
    for origin in (str(tmp_path / "out"), "digits@1"):
        told = CliRunner().invoke(models.app, ["pull", origin, str(tmp_path / "model"), "--workspace", str(tmp_path)])
        assert "model holds digits version 1" in told.output.replace("\n", "")
        assert bundles.digest(tmp_path / "model") == bundles.digest(place.bundle)


def test_who_follows_an_alias_gets_the_version_that_it_moves_to(
    place: Place, first: ModelVersion, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_TRACKING_ADDRESS", place.address)
    origin, dest = delivery.open_origin(read_settings(tmp_path), f"{name}@live"), tmp_path / "model"
    for number, key in enumerate(("a", "b"), 1):
        add(place, first, name, key)
        place.registry()._client.set_registered_model_alias(name, "live", str(number))
    with pytest.raises(AskedWrongly, match="no version or alias 'champion'"):
        delivery.open_origin(read_settings(tmp_path), name).pull_if_new(dest, None)
    held = origin.pull_if_new(dest, None)
    assert (held.name, held.version) == (name, "2")
    inode = dest.stat().st_ino
    assert origin.pull_if_new(dest, held) == held
    place.registry()._client.set_registered_model_alias(name, "live", "1")
    assert origin.pull_if_new(dest, held).version == "1"
    assert dest.stat().st_ino == inode, "both versions have the same bundle"
    assert bundles.digest(dest) == bundles.digest(place.bundle)


def test_only_an_unchanged_bundle_of_this_model_gives_way(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    def pulled(named: str) -> Path:
        place.registry().pull("digits", "champion", tmp_path / named)
        return tmp_path / named

    (pulled("notes") / "notes.txt").write_text("mine")
    (pulled("card") / "card.md").write_text("my own words")
    (pulled("nested") / "mine").mkdir()
    (pulled("less") / "card.md").unlink()
    (tmp_path / "link").symlink_to(pulled("target"))
    other_bundle(tmp_path / "stranger")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = {
        "notes": "notes.txt",
        "card": "card.md",
        "nested": "mine",
        "less": "card.md",
        "link": "a link",
        "stranger": "none of",
    }
    for taken, why in words.items():
        with pytest.raises(AskedWrongly, match=rf"in the way \(.*{why}"):
            place.registry().pull("digits", "champion", tmp_path / taken)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("exchanges", [True, False], ids=["in one step", "in two"])
def test_a_folder_is_put_in_the_place_of_another_whole(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(placing, "_exchange", lambda one, other: False)
    new, old = tmp_path / "made" / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    placing.put(new, old)
    assert (old / "file").read_text() == "new"
    assert [file.read_text() for file in (tmp_path / "made").rglob("file")] == ["old"]


def test_files_that_mlflow_no_longer_has_are_missed_in_whole_words(
    place: Place, first: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(place.registry()._client.get_model_version_download_uri("digits", first.version))
    folder.rename(tmp_path / "away")
    try:
        with pytest.raises(HeadstartError, match=rf"digits version 1 are not where .*{folder}.*HEADSTART_STORAGE_ROOT"):
            place.registry().pull("digits", "champion", tmp_path / "dest")
    finally:
        (tmp_path / "away").rename(folder)


def test_a_changed_byte_in_the_registry_is_not_pulled(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    folder = Path(place.registry()._client.get_model_version_download_uri("digits", first.version))
    card = folder / "bundle" / "card.md"
    good = card.read_bytes()
    card.write_bytes(good + b"!")
    try:
        with pytest.raises(BundleError, match=r"card\.md"):
            place.registry().pull("digits", "champion", tmp_path / "dest")
    finally:
        card.write_bytes(good)
    assert list(tmp_path.iterdir()) == []


def test_a_name_or_alias_that_is_not_there_is_answered_with_what_is(place: Place, first: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match=r"'cats'.*digits"):
        place.registry().pull("cats", "champion", tmp_path / "dest")
    for which in ("challenger", "99"):
        with pytest.raises(AskedWrongly, match=rf"'{which}'.*1.*champion"):
            place.registry().pull("digits", which, tmp_path / "dest")
    with pytest.raises(AskedWrongly, match="is no model's name"):
        place.registry().versions("it's")
    assert place.registry().versions("cats") == []
    assert place.registry().current("cats") == {}


def test_promotion_moves_the_champion_and_keeps_the_previous(place: Place, first: ModelVersion, name: str) -> None:
    registry = place.registry()
    for key in ("a", "b"):
        add(place, first, name, key)
    assert registry.promote(name, "1", YES).aliases == ("champion",)
    assert aliases(place, name) == {"champion": "1"}
    registry.set_challenger(name, "2")
    registry.promote(name, "2", YES)
    assert aliases(place, name) == {"champion": "2", "previous": "1"}
    registry.promote(name, "2", YES)
    assert aliases(place, name) == {"champion": "2", "previous": "1"}, "again is as once"
    assert len(registry.history(name)) == 2
    told = next(model for model in registry.models() if model.name == name)
    assert told == ModelRow(name, champion="2", previous="1", challenger=None, versions=2)


def test_only_a_verdict_to_promote_moves_the_champion(place: Place, first: ModelVersion, name: str) -> None:
    add(place, first, name, "a")
    with pytest.raises(AskedWrongly, match="verdict"):
        place.registry().promote(name, "1", NO)
    place.registry().record(name, "1", NO)
    place.registry().set_challenger(name, "1")
    assert aliases(place, name) == {"challenger": "1"}
    assert place.registry().find(name, "1").tags["headstart.verdict"] == f"not promoted\n{NO.reasons[0]}"


def test_going_back_takes_the_previous_and_marks_the_one_withdrawn(place: Place, first: ModelVersion, name: str) -> None:
    registry = place.registry()
    for version, key in enumerate(("a", "b", "c"), start=1):
        add(place, first, name, key)
        registry.promote(name, str(version), YES)
    assert registry.rollback(name).version == "2"
    assert aliases(place, name) == {"champion": "2", "previous": "1"}
    assert registry.find(name, "3").tags["headstart.withdrawn"] == "true"
    assert registry.rollback(name).version == "1"
    assert aliases(place, name) == {"champion": "1"}
    with pytest.raises(AskedWrongly, match="no previous"):
        registry.rollback(name)
    told = [(e.kind, e.version, e.champion_after) for e in registry.history(name)]
    assert told[-2:] == [("rollback", "3", "2"), ("rollback", "2", "1")]


def test_a_rollback_to_an_earlier_champion_keeps_why(place: Place, first: ModelVersion, name: str) -> None:
    registry = place.registry()
    for version, key in enumerate(("a", "b", "c", "d"), start=1):
        add(place, first, name, key)
        if version < 4:
            registry.promote(name, str(version), YES)
    assert registry.rollback(name, "1", "reads cats as dogs").version == "1"
    assert aliases(place, name) == {"champion": "1"}
    last = registry.history(name)[-1]
    assert (last.kind, last.version, last.champion_after) == ("rollback", "3", "1")
    assert last.reasons == ("version 3 was taken back by hand: reads cats as dogs; version 1 is champion again",)
    for version, why in (("3", "taken back"), ("4", "no earlier champion"), ("1", "allowed: 2")):
        with pytest.raises(AskedWrongly, match=f"version {version} of {name} .*{why}"):
            registry.rollback(name, version)
    with pytest.raises(AskedWrongly, match="9"):
        registry.rollback(name, "9")
    assert aliases(place, name) == {"champion": "1"}
    assert registry.rollback(name, "2").version == "2"
    assert aliases(place, name) == {"champion": "2"}, "whom it replaced was taken back"


def test_a_rollback_by_mistake_is_undone_with_a_reason_and_takes_nobody_back(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.registry()
    for version, key in enumerate(("a", "b", "c"), start=1):
        add(place, first, name, key)
        registry.promote(name, str(version), YES)
    monkeypatch.setattr(models, "_registry", lambda _: place.registry())
    run = partial(CliRunner().invoke, models.app)

    def withdrawn() -> list[str]:
        return [version.version for version in registry.versions(name) if version.is_withdrawn]

    undo = ["rollback", name, "--to", "3", "--reason", "wrong model"]
    for _ in range(2):
        told = run(["rollback", name]).stderr
        assert f"Version 3 is taken back. To undo this: headstart models rollback {name} --to 3 --reason TEXT" in told
        assert withdrawn() == ["3"]
        with pytest.raises(AskedWrongly, match=f"taken back; to bring it back say why.* rollback {name} --to 3 --reason TEXT"):
            registry.rollback(name, "3")
        assert "To undo" not in run(undo).stderr
        assert (aliases(place, name), withdrawn()) == ({"champion": "3", "previous": "2"}, [])
        assert registry.settle(name) is None
    last = registry.history(name)[-1]
    assert (last.kind, last.version, last.champion_after) == ("rollback undone", "3", "3")
    assert last.reasons == ("the rollback to version 2 was undone by hand: wrong model; version 3 is champion again",)
    kinds = [entry.kind for entry in registry.history(name)]
    assert kinds[3:] == ["rollback", "rollback undone"] * 2
    assert "brought back" in run(["history", name]).stdout
    # Later, one that was taken back is gone back to as to any other: the present champion is taken back.
    registry.rollback(name, "1")
    registry.rollback(name, "2")
    registry.rollback(name, "3", "the best of the three")
    assert (aliases(place, name), withdrawn()) == ({"champion": "3"}, ["1", "2"])


def test_the_ledger_tells_who_was_champion_at_a_time_and_why() -> None:
    decided = [
        entry("1", time=10.0, champion_before=None, champion_after="1"),
        entry("2", time=20.0, promoted=False, champion_before="1", champion_after="1"),
        entry("3", time=30.0, champion_before="1", champion_after="3"),
        entry("3", kind="rollback", time=40.0, promoted=False, champion_before="3", champion_after="1"),
    ]
    at = {time: champion_at(decided, time) for time in (9.0, 10.0, 29.0, 30.0, 41.0)}
    assert {time: made and made.champion_after for time, made in at.items()} == {9: None, 10: "1", 29: "1", 30: "3", 41: "1"}
    assert at[29.0] == decided[0]
    assert at[41.0] == decided[3]


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    """This process nine hours ahead of UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def test_the_command_tells_who_was_champion_at_a_time_and_how_to_go_back(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch, in_tokyo: None
) -> None:
    registry = place.registry()
    for version, key in enumerate(("a", "b"), start=1):
        add(place, first, name, key)
        monkeypatch.setattr(time, "time", lambda day=version: datetime(2026, 11, day, 3, 0, tzinfo=UTC).timestamp())
        registry.promote(name, str(version), YES)
    monkeypatch.undo()
    monkeypatch.setattr(models, "_registry", lambda _: place.registry())
    run = partial(CliRunner().invoke, models.app)
    then = run(["history", name, "--as-of", "2026-11-01T12:00", "--json"])
    assert (json.loads(then.stdout)["champion"], len(json.loads(then.stdout)["history"])) == ("1", 1)
    told = run(["history", name, "--as-of", "2026-11-01T03:01"])
    assert f"At 2026-11-01 03:01 UTC version 1 was the champion of {name}" in told.stderr
    assert f"headstart models rollback {name} --to 1" in told.stderr
    assert "To go back" not in run(["history", name, "--as-of", "2026-11-03"]).stderr
    assert f"{name} had no champion" in run(["history", name, "--as-of", "2026-11-01"]).stderr
    assert run(["history", name, "--as-of", "yesterday"]).exit_code == 2
    assert run(["rollback", name, "--to", "1", "--reason", "worse at night"]).exit_code == 0
    assert "worse at night" in registry.history(name)[-1].reasons[0]


def test_decisions_keep_their_order_whatever_the_clock_says(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.registry()
    for version, key in enumerate(("a", "b", "c"), start=1):
        add(place, first, name, key)
        with monkeypatch.context() as patch:
            now = time.time() + 86_400 * (version == 2)
            patch.setattr(time, "time", lambda now=now: now)
            registry.promote(name, str(version), YES)
    assert registry.settle(name) is None, "nobody else moved the champion"
    assert registry.rollback(name).version == "2"
    assert [entry.champion_after for entry in registry.history(name)] == ["1", "2", "3", "2"]


def test_the_ledger_keeps_every_verdict_once_and_survives_either_copy(place: Place, first: ModelVersion, name: str) -> None:
    for key in ("a", "b"):
        add(place, first, name, key)
    registry = place.registry()
    registry.promote(name, "1", YES)
    for _ in range(2):
        entry = registry.record(name, "2", NO)
    assert (entry.champion_before, entry.champion_after, entry.data_version) == ("1", "1", "data-b")
    told = registry.history(name)
    assert [(e.version, e.promoted) for e in told] == [("1", True), ("2", False)]
    assert [e.reasons for e in told] == [YES.reasons, NO.reasons]
    assert place.registry("elsewhere").history(name) == told, "the registry holds all of it"
    file = place.folder / "ledger" / f"{name}.jsonl"
    assert len(file.read_text().splitlines()) == 2
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [e.id for e in told]


def test_a_bundle_that_is_not_the_one_that_was_judged_is_not_approved(
    place: Place, first: ModelVersion, name: str, tmp_path: Path
) -> None:
    registry = place.registry()
    add(place, first, name, "a")
    registry._client.set_model_version_tag(
        name, "1", "headstart.bundle_digest", bundles.digest(other_bundle(tmp_path / "judged"))
    )
    registry.record(name, "1", Verdict(False, ("proven",), waits=True))
    assert "headstart.waits_for_approval" in registry.find(name, "1").tags
    with pytest.raises(BundleError):
        registry.approve(name, None, "why")
    assert registry.current(name) == {}
    registry._client.set_model_version_tag(name, "1", "headstart.bundle_digest", bundles.digest(place.bundle))
    assert registry.approve(name, None, "why").aliases == ("champion",)


def test_the_ledger_of_an_unknown_model_says_what_is_known(place: Place, first: ModelVersion) -> None:
    with pytest.raises(AskedWrongly, match="digits"):
        place.registry().history("cats")


def entry(version: str, **changes: Any) -> LedgerEntry:
    told: dict[str, Any] = {"kind": "verdict", "name": "m", "version": version, "time": 1.0, "promoted": True, "reasons": ()}
    told |= {"champion_before": None, "champion_after": version, "data_version": "d", "variant_id": "v", "work_key": "w"}
    return LedgerEntry(**told | changes)


def test_a_line_cut_short_by_a_crash_costs_no_other_line(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "m.jsonl"
    stored = StoredFile(Folder(file.parent), file.name)
    ledger.append(stored, entry("1"))
    with file.open("a") as torn:
        torn.write('{"kind": "verd')
    ledger.append(stored, entry("2"))
    ledger.append(stored, entry("2", time=9.0))
    assert [e.version for e in ledger.read(stored)] == ["1", "2"]


def test_an_entry_too_long_for_a_tag_loses_findings_figures_and_last_reasons_in_turn() -> None:
    findings = (Finding("paired_test", True, "y" * 3000, {"p": 0.1}, ("z" * 3000,)),)
    told = LedgerEntry.from_text(entry("1", figures={"p": 0.1}, findings=findings).to_text(5000))
    assert (told.findings, told.figures) == ((), {"p": 0.1})
    long = entry("1", reasons=("why",) + ("x" * 1000,) * 9, figures={f"f{i}": 0.5 for i in range(900)}, findings=findings)
    short = LedgerEntry.from_text(long.to_text(5000))
    assert len(long.to_text(5000)) <= 5000
    assert (short.reasons[0], len(short.reasons), short.figures) == ("why", 5, {})
    assert LedgerEntry.from_json(long.to_json()) == long


def test_an_entry_of_the_ledger_reads_as_plain_lines_and_is_the_same_again() -> None:
    told = entry(
        "1", time=1795755300.123, reasons=("a: 'b' \"c\"", "ü < 0.05"), figures={"p": 1.3e-12, "n": 3.0}, data_version="12345678"
    )
    told = replace(told, findings=(Finding("min_gain", False, "less than: 0.1", {"gain": 0.05}, ("a note",)),))
    text = told.to_text(5000)
    assert text.startswith("when: 2026-11-27 04:55 UTC\nkind: verdict\n")
    assert LedgerEntry.from_text(text) == told
    assert LedgerEntry.from_text(told.to_json()) == told, "as registries of before hold it"
    before = {name: value for name, value in json.loads(told.to_json()).items() if name != "findings"}
    assert LedgerEntry.from_json(json.dumps(before)) == replace(told, findings=()), "entries of before had none"


def test_a_registry_that_fails_says_so_in_our_words(place: Place, first: ModelVersion) -> None:
    registry, work = place.registry(), {"variant_id": "v", "data_version": "d", "git_commit": "c"}
    with pytest.raises(HeadstartError, match="no-such-run"):
        registry.register("digits", bundle=place.bundle, run_id="no-such-run", work_key="w9", metrics={}, **work)


def meddle(registry: Registry, other: Registry, name: str, alias: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process point an alias elsewhere right after each of ours moved or was taken away."""

    def followed(ours: Any) -> Any:
        return lambda *words: (ours(*words), other._client.set_registered_model_alias(name, alias, version))

    for change in ("set_registered_model_alias", "delete_registered_model_alias"):
        monkeypatch.setattr(registry._client, change, followed(getattr(registry._client, change)))


def test_aliases_that_another_process_moves_meanwhile_are_told_and_the_next_promotion_ends_well(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.registry()
    for key in ("a", "b", "c"):
        add(place, first, name, key)
    registry.promote(name, "1", YES)
    with monkeypatch.context() as patch:
        meddle(registry, place.registry(), name, "champion", "3", patch)
        words = f"another process moved the aliases of {name} just now: wanted {{'champion': '2'}}, found {{'champion': '3'}}"
        with pytest.raises(HeadstartError, match=f"^{re.escape(words)}$"):
            registry.promote(name, "2", YES)
    assert aliases(place, name) == {"champion": "3", "previous": "1"}, "theirs stands, and who is promoted next comes after it"
    registry.promote(name, "2", YES)
    assert aliases(place, name) == {"champion": "2", "previous": "3"}
    assert [(e.version, e.champion_before, e.champion_after) for e in registry.history(name)][1:] == [
        ("2", "1", "2"),
        ("3", "2", "3"),
        ("2", "3", "2"),
    ]


def test_an_alias_that_another_process_puts_back_is_told(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.registry()
    for key in ("a", "b"):
        add(place, first, name, key)
    registry.set_challenger(name, "1")
    meddle(registry, place.registry(), name, "challenger", "2", monkeypatch)
    with pytest.raises(HeadstartError, match=r"wanted \{'challenger': None\}, found \{'challenger': '2'\}"):
        registry.promote(name, "1", YES)
    assert aliases(place, name) == {"challenger": "2"}, "nobody was promoted"


class Colours(torch.nn.Module):
    """Two classes by an image's mean colour; `shift` makes it another program, `side` one whose export takes one size alone."""

    def __init__(self, shift: float = 0.0, side: int | None = None) -> None:
        super().__init__()
        self.side = side
        self.weights = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [shift, 0.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.side is not None and torch.compiler.is_exporting():
            images = images.reshape(-1, self.side, self.side, 3)
        return torch.softmax(images.float().mean(dim=(1, 2)) / 255 @ self.weights, dim=1)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours") / "model"
    program.write_program(folder, Colours())
    return folder


MASKED = Variant(
    backbone="squeezenet1_1",
    heads=(Head(target="label"), Head(target="mask", task="segmentation", design="fcn")),
    fit=Fit(image_size_px=32),
)
TAGGED = Variant(backbone="textcnn", heads=(Head(target="label"), Head(target="tags", task="tagging")))


@pytest.mark.parametrize(("variant", "num_dimensions"), [(None, 2), (MASKED, 4), (TAGGED, 3)], ids=["classes", "masks", "tags"])
def test_a_signature_has_the_dimensions_of_the_models_answer(
    variant: Variant | None, num_dimensions: int, colours: Path, tmp_path: Path
) -> None:
    folder, num_classes, signature = colours, 2, program.SIGNATURES["image"]
    if variant:
        names = CLASSES | {"mask": ("sky", "road"), "tags": tag_names(["place"])}
        classes = {head.target: names[head.target] for head in variant.heads}
        made = bundles.Bundle(build_model(variant, classes, None), variant, classes, preprocess_of(variant), {})
        folder, num_classes, signature = tmp_path / "model", sum(map(len, classes.values())), program.SIGNATURES[variant.modality]
        program.write_program(folder, export_program(made), signature)
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(folder))
    told = loaded.metadata.signature.outputs.inputs[0].shape
    assert told == (-1, num_classes, *[-1] * (num_dimensions - 2))
    for shape in signature.trials:
        answer = loaded.predict(np.full(shape, signature.fill, signature.dtype))
        assert all(size in (-1, given) for size, given in zip(told, answer.shape, strict=True))


@pytest.mark.parametrize(("shift", "told"), [(0.1, r"0\.0\d+"), (float("nan"), "nan")])
def test_an_export_that_reads_otherwise_than_the_model_is_refused(colours: Path, shift: float, told: str) -> None:
    program._try_out(colours, Colours(), program.SIGNATURES["image"])
    with pytest.raises(
        HeadstartError, match=rf"the exported model is off by {told} on a batch of \(1, 48, 30, 3\); at most 0\.0001"
    ):
        program._try_out(colours, Colours(shift), program.SIGNATURES["image"])


def test_an_export_for_images_of_one_size_is_refused_and_nothing_is_registered(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.bundle.program.export_program", lambda _: Colours(side=program.SIGNATURES["image"].example[1]))
    with pytest.raises(HeadstartError, match=r"the exported model does not take a batch of \(1, 48, 30, 3\): "):
        place.register(name, "work2")
    assert place.registry().versions(name) == []
    monkeypatch.setattr("heads.bundle.program.export_program", lambda _: Colours())
    assert place.register(name, "work2").version == "1", "a later try begins with a model of its own"


def test_a_version_that_was_prepared_is_exported_once_and_holds_the_same_files(
    place: Place, first: ModelVersion, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def export(_: object) -> Colours:
        exported.append(threading.current_thread().name)
        return Colours()

    monkeypatch.setattr("heads.bundle.program.export_program", export)
    registry = place.registry()
    registry.prepare(name, place.bundle, "work3")
    made = place.register(name, "work3", registry)
    assert [thread.partition("_")[0] for thread in exported] == ["export"]
    client = registry._client
    folder = Path(client.get_model_version_download_uri(name, made.version))
    model = yaml.safe_load((folder / "MLmodel").read_text())
    assert (model["run_id"], model["metadata"]["headstart.work_key"]) == (made.tags["headstart.run_id"], "work3")
    assert client.get_model_version(name, made.version).source == f"models:/{model['model_id']}"
    before = Path(client.get_model_version_download_uri("digits", first.version))
    # Whoever loads a version from the registry leaves that file beside it.
    files, earlier = ({file.relative_to(each) for file in each.rglob("*")} for each in (folder, before))
    assert files == earlier - {Path("registered_model_meta")}
    registry.prepare(name, place.bundle, "work3")
    assert len(exported) == 1, "the work has its version"
