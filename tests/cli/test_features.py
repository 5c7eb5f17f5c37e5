"""`headstart features`, and what a person sees of features while and after a retraining stores and reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import dataset
from flows.cli import planning, screen
from flows.job.trunks import name_trunk
from flows.settings import Settings
from flows.stages.feature_store import SHARE_OF_DISK, keep_in_bounds
from flows.stages.preview.costs import Estimate
from heads.features import FeatureStore, Key
from heads.spec import Head, Variant
from heads.trunks.trunk import Trunk, trunk_of
from tests.cli.conftest import Ask

NUM_SAMPLES = 8


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "tiny"
    dataset.init_workspace(folder)
    return folder


@pytest.fixture
def workspace(untouched: Path, tmp_path: Path) -> Path:
    """A workspace that holds two trunks' features, the second used later: 8 vectors of 4 kB each."""
    folder = tmp_path / "tiny"
    shutil.copytree(untouched, folder)
    for number, trunk in enumerate(trunks()):
        store = FeatureStore(folder / ".headstart" / "features")
        name_trunk(store, trunk)
        keys = [Key(f"{sample:032x}") for sample in range(NUM_SAMPLES)]
        store.trunk(trunk.id).write(keys, {"8:pooled": torch.full((NUM_SAMPLES, 1000, 1, 1), float(number))})
        for file in (store.root / trunk.id).iterdir():
            os.utime(file, (1e9 + 1e6 * number, 1e9 + 1e6 * number))
    return folder


def trunks() -> tuple[Trunk, Trunk]:
    variant = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),))
    cpu = torch.device("cpu")
    return trunk_of(variant, "a" * 64, cpu), trunk_of(variant, "a" * 64, cpu, varied=True)


def test_the_store_is_shown_trunk_by_trunk(workspace: Path, ask: Ask) -> None:
    answer = ask(workspace, "features", "status", "--json")
    told = json.loads(answer.out)
    assert answer.status in (0, None)
    assert [trunk["trunk_id"] for trunk in told["trunks"]] == [trunk.id for trunk in reversed(trunks())]
    varied, plain = told["trunks"]
    assert (plain["backbone"], plain["image_size_px"], plain["views"], varied["views"]) == ("mobilenet_v2", 224, "plain", "light")
    assert plain["taps"] == {"8:pooled": {"samples": NUM_SAMPLES, "layout": "float32 (1000, 1, 1)"}}
    assert told["bytes"] == plain["bytes"] + varied["bytes"] > 2 * NUM_SAMPLES * 4000
    table = ask(workspace, "features", "status")
    assert all(trunk.id in table.out for trunk in trunks())
    assert f"holds {screen.size(told['bytes'])} of at most" in table.err


def test_a_store_that_is_not_there_yet_is_empty_and_a_folder_that_is_no_workspace_is_refused(
    untouched: Path, tmp_path: Path, ask: Ask
) -> None:
    assert json.loads(ask(untouched, "features", "status", "--json").out)["trunks"] == []
    assert json.loads(ask(untouched, "features", "verify", "--json").out)["shards"] == 0
    assert not (untouched / ".headstart" / "features").exists()
    assert ask(tmp_path, "features", "status").status == 2


def test_every_byte_is_verified_and_damage_ends_with_status_1(workspace: Path, ask: Ask) -> None:
    whole = ask(workspace, "features", "verify", "--json")
    assert whole.status in (0, None)
    assert json.loads(whole.out)["damaged"] == []
    (shard,) = (workspace / ".headstart" / "features" / trunks()[0].id).glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    answer = ask(workspace, "features", "verify", "--json")
    assert answer.status == 1
    assert [(one["trunk_id"], one["shard"]) for one in json.loads(answer.out)["damaged"]] == [(trunks()[0].id, shard.name)]
    assert shard.name in answer.err
    assert "the next retraining that needs these samples removes them and computes them again" in answer.err
    assert shard.exists()


def test_what_was_used_least_recently_goes_first_with_its_name(workspace: Path, ask: Ask) -> None:
    answer = ask(workspace, "features", "prune", "--max-size", "40kB", "--json")
    told = json.loads(answer.out)
    assert (told["freed_shards"], told["bytes"]) == (1, told["freed_bytes"])
    left = {path.name for path in (workspace / ".headstart" / "features").iterdir()}
    assert left == {trunks()[1].id, f"{trunks()[1].id}.json"}
    assert "1 shard removed" in ask(workspace, "features", "prune", "--max-size", "0").err
    assert list((workspace / ".headstart" / "features").iterdir()) == []


@pytest.mark.parametrize("size", ["nix", "-1", "10 potatoes", ""])
def test_a_size_that_is_none_is_refused(workspace: Path, ask: Ask, size: str) -> None:
    answer = ask(workspace, "features", "prune", f"--max-size={size}")
    assert answer.status == 2
    assert "10GB" in answer.err
    assert FeatureStore(workspace / ".headstart" / "features").status() != []


def test_nothing_is_pruned_beside_a_retraining(workspace: Path, ask: Ask) -> None:
    lock = workspace / ".headstart" / "locks" / "pets"
    lock.parent.mkdir()
    code = textwrap.dedent(f"""
        import fcntl
        file = open({str(lock)!r}, "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("pid 7")
        file.flush()
        print("held", flush=True)
        input()
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        answer = ask(workspace, "features", "prune", "--max-size", "0")
        session: Any = Listening(workspace, 0, "other")
        keep_in_bounds(session)
        holder.communicate("")
    assert answer.status == 2
    assert "pets, pid 7" in answer.err
    assert session.said == []
    assert len(FeatureStore(workspace / ".headstart" / "features").status()) == 2


class Listening:
    """A session that only keeps what was said at it."""

    def __init__(self, workspace: Path, max_bytes: int | None, name: str) -> None:
        self.settings = Settings(workspace=workspace, features_max_bytes=max_bytes)  # type: ignore[arg-type]
        self.plan, self.said = planned(name), list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


def planned(name: str) -> Any:
    from flows.plan import parse_plan

    return parse_plan({"name": name})


def test_a_training_leaves_the_store_within_its_bounds_and_says_what_went(workspace: Path) -> None:
    store = FeatureStore(workspace / ".headstart" / "features")
    for max_bytes, left, words in ((10**9, 2, 0), (None, 2, 0), (40_000, 1, 1)):
        session: Any = Listening(workspace, max_bytes, "tiny")
        keep_in_bounds(session)
        assert (len(store.status()), len(session.said)) == (left, words)
    assert "freed" in session.said[0]


def test_unless_told_otherwise_the_store_takes_half_of_what_its_disk_has_left_for_it(workspace: Path, ask: Ask) -> None:
    told = json.loads(ask(workspace, "features", "status", "--json").out)
    room = shutil.disk_usage(workspace).free + told["bytes"]
    assert told["max_bytes"] == pytest.approx(SHARE_OF_DISK * room, rel=0.05)


@pytest.mark.parametrize(("text", "expected"), [("50GB", 50 * 10**9), ("1GiB", 2**30), ("7", 7)])
def test_the_bound_is_set_by_an_environment_variable(
    workspace: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    monkeypatch.setenv("HEADSTART_FEATURES_MAX_BYTES", text)
    assert json.loads(ask(workspace, "features", "status", "--json").out)["max_bytes"] == expected
    monkeypatch.setenv("HEADSTART_FEATURES_MAX_BYTES", "much")
    answer = ask(workspace, "features", "status")
    assert answer.status == 2
    assert "HEADSTART_FEATURES_MAX_BYTES=much" in answer.err


def test_an_estimate_is_told_with_what_it_saves_and_whose_seconds_they_are() -> None:
    estimate = Estimate(
        flops=2 * 10**9,
        flops_alone=50 * 10**9,
        flops_factor=25.0,
        seconds=12.0,
        seconds_alone=240.0,
        seconds_factor=20.0,
        calibrated=True,
        device="cpu",
        elsewhere=", while the cluster at x trains",
        rates={},
    )
    told = planning.describe_estimate(estimate, 16)
    assert "About 12 s of training, 2.0 GFLOPs" in told
    assert "A job a variant (16 jobs without stored features): 4 min, 50.0 GFLOPs" in told
    assert "25.0 x the arithmetic, about 20.0 x the time" in told
    assert "this machine's CPU, while the cluster at x trains" in told
    assert "not timed here" in planning.describe_estimate(replace(estimate, calibrated=False), 16)
    assert "the start of the workers comes on top" in told
    alone = planning.describe_estimate(estimate, 16, in_driver=True)
    assert "the job's driver trains alone, done before workers would have started" in alone
    assert "stored already" in planning.describe_estimate(replace(estimate, flops_factor=None), 16)
