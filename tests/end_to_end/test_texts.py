"""A table of texts by the public command: ingested, trained on a frozen encoder, promoted, read, and found done the next time.

Its columns are classes, sets of labels, and tags of words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.settings import Settings
from flows.stages.first_weights import find_start
from flows.stages.scoring import checked_bundle
from flows.stages.session import open_registry
from heads import bundle
from tests import object_store
from tests.end_to_end.conftest import Workspace
from tests.heads.encoders import write_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_TEXTS = 90
PLAN = """
name: colours
targets: [{column: colour}, {column: things}, {column: names}]
backbones: [bert]
weights: ./encoder
heads: [linear, crf]
freeze: [all]
fit: {epochs: 15, batch_size: 16, learning_rate: 0.03, max_tokens: 16}
promotion: {metric: colour/accuracy}
"""


def row_of(number: int) -> str:
    colour, thing = ("red", "blue")[number % 2], ("house", "car", "tree")[number % 3]
    split = ("train", "train", "train", "val", "test")[number // 6 % 5]
    things = f"{thing}|odd" if number % 4 == 1 else thing
    text = f"{'a ' * (number % 4)}{colour}, {thing}s {'! ' * (number // 12)}"
    tags = {f"{colour},": "B-colour", f"{thing}s": "B-thing"}
    names = " ".join(["tags:", *(tags.get(word, "O") for word in text.split())])
    return f'"{text}",{colour},{things},{names},{split}'


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("texts")
    workspace = Workspace(folder / "workspace")
    (folder / "source").mkdir()
    (folder / "source" / "labels.csv").write_text("\n".join(["text,colour,things,names,split", *map(row_of, range(NUM_TEXTS))]))
    workspace.folder.mkdir()
    workspace.run("init", ".")
    workspace.run("data", "ingest", str(folder / "source"))
    write_encoder(workspace.folder / "encoder")
    (workspace.folder / "plan.yaml").write_text(PLAN)
    return workspace


@pytest.fixture(scope="module")
def report(texts: Workspace) -> dict[str, Any]:
    """The report of the one retraining."""
    return texts.json("retrain", "plan.yaml")


def test_the_status_tells_labels_and_lengths(texts: Workspace) -> None:
    status = texts.json("data", "status")
    assert set(status["classes"]["colour"]) == {"red", "blue"}
    assert set(status["classes"]["names"]) == {"colour", "thing"}
    assert status["text_bytes"]["least"] < status["text_bytes"]["median"] < status["text_bytes"]["most"]


def test_a_frozen_encoder_runs_once_a_text_for_all_heads_and_is_promoted(report: dict[str, Any]) -> None:
    assert report["verdict"]["promoted"], report["verdict"]
    assert report["holdout"]["colour/accuracy"] > 0.9
    assert report["holdout"]["names/span_f1"] > 0.5
    assert report["baseline"]["kind"] == "probe", report["baseline"]
    assert sorted(variant["heads"]["names"] for variant in report["variants"]) == ["crf", "linear"]
    assert {variant["backbone"] for variant in report["variants"]} == {"bert-2x16x2-f32-v14-p64"}
    assert 0 < report["counts"]["trunk_forwards"] <= NUM_TEXTS
    assert {one["kind"] for one in (report["baseline"], *report["other_baselines"])} == {"probe", "tfidf"}


def test_the_run_shows_texts_with_coloured_tokens_and_the_card_quotes_them(texts: Workspace, report: dict[str, Any]) -> None:
    pictures = [file.name for file in texts.folder.rglob("examples_*.png")]
    assert sorted(pictures) == ["examples_colour.png", "examples_things.png"]
    card = texts.run("models", "card", "colours@champion")
    assert re.search(r'"[a ]*(red|blue), (house|car|tree)s', card)
    assert 'bundle.predict(["some text"])' in card


def test_the_next_night_trains_nothing(texts: Workspace, report: dict[str, Any]) -> None:
    again = texts.json("retrain", "plan.yaml")
    assert again["counts"]["variants_trained"] == 0
    assert again["counts"]["trunk_forwards"] == 0


def test_the_champion_reads_texts_files_and_a_column(texts: Workspace, report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a blue house")
    (tmp_path / "asked.csv").write_text('text,note\n"red car",x\n,y\n')
    asked = ["--text", "a red house", "--text", "blue car", str(tmp_path / "one.txt"), str(tmp_path / "asked.csv")]
    found = json.loads(texts.run("predict", "colours@champion", *asked, "--json", status=1))
    assert [row["colour"]["label"] for row in found["predictions"]] == ["red", "blue", "blue", "red"]
    assert [row["file"] for row in found["predictions"]][:3] == ["a red house", "blue car", str(tmp_path / "one.txt")]
    assert [row["reason"] for row in found["unread"]] == ["is empty"]
    for row in found["predictions"]:
        assert len(row["names"]["words"]) == len(row["names"]["tags"])
        assert all(span["text"] in " ".join(row["names"]["words"]) for span in row["names"]["spans"])
    texts.run("predict", "colours@champion", "--text", " ", status=2)


def test_a_pulled_bundle_reads_texts_without_the_pipeline(texts: Workspace, report: dict[str, Any]) -> None:
    texts.run("models", "pull", "colours@champion", "model")
    loaded = bundle.load(texts.folder / "model")
    (answer,) = loaded.predict(["a red car"])
    assert answer["colour"].label == "red"  # type: ignore[union-attr]
    assert "A model of texts" in (texts.folder / "model" / "card.md").read_text()


def test_a_consumer_without_credentials_pulls_by_signed_addresses(
    texts: Workspace, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store.serving(monkeypatch):
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setitem(texts.env, name, os.environ[name])
        lines = texts.run("models", "publish", "colours@champion", "s3://pets/models/colours", "--expires", "600")
        (tmp_path / "colours.signed").write_text(lines)
        assert bundle.VOCABULARY in lines
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delitem(texts.env, name)
        texts.run("models", "pull", str(tmp_path / "colours.signed"), str(tmp_path / "model"))
    assert bundle.load(tmp_path / "model").predict(["a red car"])[0]["colour"].label == "red"  # type: ignore[union-attr]


def test_a_retraining_speaks_of_texts(texts: Workspace, report: dict[str, Any]) -> None:
    shown = texts.run("retrain", "plan.yaml")
    assert "texts forwarded" in shown
    assert 'predict colours@champion --text "..."' in shown


def test_after_a_prune_with_other_data_the_champion_is_pulled_compared_with_and_started_from_as_before(
    texts: Workspace, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even without the champion's own work, which a prune never removes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "labels.csv").write_text("\n".join(["text,colour,things,names,split", row_of(NUM_TEXTS)]))
    texts.run("data", "ingest", str(tmp_path / "source"))
    told = texts.json("works", "prune", "--older-than", "0d")
    assert (told["removed"], told["freed_bytes"] > 0) == (1, True)
    (champion,) = (texts.storage / "work").iterdir()
    shutil.rmtree(champion)
    texts.run("models", "pull", "colours@champion", str(tmp_path / "model"))
    settings = Settings(workspace=texts.folder)
    registry = open_registry(settings)
    session: Any = SimpleNamespace(settings=settings, registry=registry)
    stored = checked_bundle(session, registry.find("colours", "champion"))
    assert (stored.name, stored.digest) == ("pulled/colours-1", bundle.digest(tmp_path / "model"))
    assert find_start(registry, settings.root, "colours").bring().is_file()
