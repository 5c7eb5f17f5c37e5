"""`headstart plan` and `headstart features` where the features lie in an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from flows import job
from flows.job.job import read_job
from flows.job.trunks import name_trunk
from flows.manifest import parse
from flows.plan import parse_plan
from flows.records import DataVersion, Workers
from flows.settings import Settings, child_environment
from flows.stages.feature_store import check_features, keep_in_bounds
from heads.backbones import BACKBONES
from heads.errors import HeadsError
from heads.features import FeatureStore, Key
from heads.spec import Head, Variant
from heads.trunks.trunk import trunk_of
from tests import object_store
from tests.cli.conftest import Ask, make_workspace

ADDRESS = "s3://pets/night"
PLAN = """
name: tiny
backbones: [mobilenet_v2]
weights: {weights}
freeze: [all]
fit: {{epochs: 2, image_size_px: 32, augment: none}}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two classes of twenty pictures, and a plan that trains a head on a frozen trunk."""
    folder = tmp_path_factory.mktemp("workspace") / "tiny"
    weights = folder.parent / "mobilenet_v2.pth"
    torch.save(BACKBONES["mobilenet_v2"].build().state_dict(), weights)
    return make_workspace(folder, PLAN.format(weights=weights))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[object_store.Bucket]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store.serving(monkeypatch) as handler:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield handler
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def ask(ask: Ask, monkeypatch: pytest.MonkeyPatch, workspace: Path) -> Ask:
    """The command in the workspace, its features below `ADDRESS`."""
    monkeypatch.setenv("HEADSTART_FEATURES_ROOT", f"{ADDRESS}/")
    return partial(ask, workspace)


def test_a_plan_says_what_the_bucket_holds(ask: Ask, bucket: type[object_store.Bucket], workspace: Path) -> None:
    (cold,) = ask("plan", "plan.yaml", "--json", "--no-calibrate").told["trunks"]
    assert cold["samples_stored"] == 0
    samples = parse((workspace / "data" / "manifest.csv").read_text())
    digests = [sample.digest for sample in samples if sample.split != "test"]
    rows = {tap: torch.zeros(5, 1280, 1, 1) for tap in cold["taps"]}
    FeatureStore(ADDRESS).trunk(cold["trunk_id"]).write([Key(digest) for digest in digests[:5]], rows)
    (warm,) = ask("plan", "plan.yaml", "--json", "--no-calibrate").told["trunks"]
    assert (warm["samples"], warm["samples_stored"]) == (len(digests), 5)
    assert not (workspace / ".headstart" / "features").exists()


def test_the_bucket_is_shown_verified_and_pruned(ask: Ask, bucket: type[object_store.Bucket]) -> None:
    assert ask("features", "status", "--json").told == {"root": ADDRESS, "trunks": [], "bytes": 0, "max_bytes": None}
    variant, store = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),)), FeatureStore(ADDRESS)
    trunk = trunk_of(variant, "a" * 64, torch.device("cpu"))
    name_trunk(store, trunk)
    for start in (0, 8):
        keys = [Key(f"{sample:032x}") for sample in range(start, start + 8)]
        store.trunk(trunk.id).write(keys, {"8:pooled": torch.full((8, 1000, 1, 1), float(start))})
    told = ask("features", "status", "--json").told
    (shown,) = told["trunks"]
    assert (shown["trunk_id"], shown["backbone"], shown["samples"], shown["shards"]) == (trunk.id, "mobilenet_v2", 16, 2)
    assert f"{ADDRESS} holds" in ask("features", "status").err
    whole = ask("features", "verify", "--json")
    assert (whole.status in (0, None), whole.told["shards"], whole.told["damaged"]) == (True, 2, [])
    damaged = next(key for key in bucket.objects if key.endswith(".safetensors"))
    bucket.objects[damaged] = bucket.objects[damaged][:-1] + b"?"
    answer = ask("features", "verify", "--json")
    assert answer.status == 1
    assert [one["shard"] for one in answer.told["damaged"]] == [damaged.rpartition("/")[2]]
    pruned = ask("features", "prune", "--max-size", "40kB", "--json").told
    assert (pruned["root"], pruned["freed_shards"], pruned["bytes"]) == (ADDRESS, 1, told["bytes"] // 2)
    assert ask("features", "prune", "--max-size", "0", "--json").told["bytes"] == 0
    assert bucket.objects == {}


def test_a_training_bounds_a_bucket_only_where_a_size_is_set(
    ask: Ask, bucket: type[object_store.Bucket], workspace: Path
) -> None:
    store = FeatureStore(ADDRESS)
    for number in range(2):
        store.trunk(f"{number:016x}").write([Key("0" * 32)], {"x": torch.zeros(1, 10_000)})
    session: Any = type("RetrainingSession", (), {"plan": parse_plan({"name": "tiny"}), "say": lambda self, text: None})()
    for max_bytes, left in ((None, 2), (10**6, 2), (50_000, 1)):
        session.settings = Settings(workspace=workspace, features_root=ADDRESS, features_max_bytes=max_bytes)  # type: ignore[arg-type]
        keep_in_bounds(session)
        assert len(store.status()) == left


def test_a_bucket_that_cannot_be_had_is_asked_wrongly(
    ask: Ask, bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    for root, words in (
        ("s3://nowhere/x", "there is no bucket 'nowhere'"),
        ("s3://", "HEADSTART_FEATURES_ROOT=s3://"),
        ("nix://pets/x", "give a folder of this machine, or such as s3://bucket/prefix"),
    ):
        monkeypatch.setenv("HEADSTART_FEATURES_ROOT", root)
        for command in (("features", "status"), ("plan", "plan.yaml", "--no-calibrate")):
            answer = ask(*command)
            assert (answer.status, answer.out) == (2, "")
            assert words in answer.err
    with pytest.raises(HeadsError, match="there is no bucket 'nowhere'"):
        check_features(Settings(features_root="s3://nowhere/x"))


def test_the_root_reaches_children_and_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path / "data", ())
    for given, expected in (
        (f"{ADDRESS}/", ADDRESS),
        ("near", str(tmp_path / "near")),
        (None, str(tmp_path / ".headstart" / "features")),
    ):
        settings = Settings(workspace=tmp_path, features_root=given)
        assert str(settings.features) == expected
        assert child_environment(settings).get("HEADSTART_FEATURES_ROOT") == (expected if given else None)
        asked = job.Job("train", "k", "tiny", settings.storage, version, {}, Workers(), features=settings.features)
        folder = job.write_job(asked)
        assert str(read_job(folder).features_root) == expected
    older = json.loads(folder.place.read("job.json"))
    del older["features"]
    folder.place.write("job.json", json.dumps(older))
    assert read_job(folder).features_root == tmp_path / ".headstart" / "features"
