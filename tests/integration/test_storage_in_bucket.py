"""A retraining whose storage is in a bucket of a real S3 server: bytes as in a folder, killed and resumed, night after night."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from heads import bundle as bundles
from tests.end_to_end.conftest import Workspace, wait_for, with_digits
from tests.integration.radosgw import Radosgw

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(2400)]
SECRET = "a-secret-of-the-test"  # of `tests.integration.radosgw`
PLAN = """
name: digits
backbones: [shufflenet_v2_x1_0]
weights: none
heads: [linear]
freeze: [none, lp_ft]
fit: {epochs: 3, batch_size: 64, learning_rate: 0.003, image_size_px: 32, seed: 0}
workers: {count: 1}
promotion: {guards: {leaks: 'off', latency: 'off'}}
"""


class InBucket(Workspace):
    """A workspace whose storage is in a bucket, and that bucket."""

    def __init__(self, folder: Path, server: Radosgw, bucket: str) -> None:
        super().__init__(folder)
        self.env |= server.environment() | {"XDG_CACHE_HOME": str(folder.parent / "cache")}
        keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        self.client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", **keys)
        self.client.create_bucket(Bucket=bucket)
        self.bucket, self.env["HEADSTART_STORAGE_ROOT"] = bucket, f"s3://{bucket}/team a/pets"

    def objects(self, below: str = "") -> dict[str, bytes]:
        """The objects of the storage by their names in it."""
        prefix, found = f"team a/pets/{below}", {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                content = self.client.get_object(Bucket=self.bucket, Key=item["Key"])["Body"].read()
                found[item["Key"].removeprefix("team a/pets/")] = content
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with its storage in a folder, after a retraining."""
    workspace = with_digits(tmp_path_factory.mktemp("folder") / "digits", PLAN)
    shutil.copytree(workspace.folder, workspace.folder.parent / "copy", symlinks=True)
    workspace.run("retrain", "plan.yaml")
    return workspace


@pytest.fixture(scope="module")
def bucket(folder: Workspace, radosgw: Radosgw) -> InBucket:
    """The same workspace with its storage in a bucket, after a retraining whose driver was killed in its training."""
    workspace = InBucket(folder.folder.parent / "copy", radosgw, "nights")
    flow = workspace.start("retrain", "plan.yaml")
    try:
        wait_for("an epoch of a variant", lambda: flow.poll() is not None or _has_epoch(workspace), 400)
        (driver,) = (p for p in psutil.process_iter() if _is_driver(p, workspace))
        os.kill(driver.pid, signal.SIGKILL)
        assert flow.wait(900) == 0, (workspace.folder.parent / "output.log").read_text()[-3000:]
    finally:
        if flow.poll() is None:
            os.killpg(flow.pid, signal.SIGTERM)
    return workspace


def _has_epoch(workspace: InBucket) -> bool:
    return any(name.endswith("progress.json") for name in workspace.objects("work"))


def _is_driver(process: psutil.Process, workspace: InBucket) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "flows.job" in words and any(word.startswith(f"s3://{workspace.bucket}/") for word in words)


def test_a_storage_in_a_bucket_gives_the_bytes_of_one_in_a_folder_though_its_driver_was_killed(
    folder: Workspace, bucket: InBucket
) -> None:
    mine, theirs = bucket.objects("work"), folder.storage / "work"
    bundles = {name: content for name, content in mine.items() if "/bundle/" in name}
    assert len(bundles) == 2 * 6
    assert bundles == {name: (folder.storage / name).read_bytes() for name in bundles}
    for result in theirs.glob("*/result.json"):
        here, there = json.loads(mine[f"work/{result.parent.name}/result.json"]), json.loads(result.read_text())
        assert here.keys() == there.keys()
        assert here["metrics"] == there["metrics"]
    assert "The Ray job's driver died" in (bucket.folder.parent / "output.log").read_text()


def test_nothing_is_left_but_what_is_kept_and_nothing_of_it_on_the_disk(folder: Workspace, bucket: InBucket) -> None:
    kinds = {name.partition("/")[0] for name in bucket.objects()}
    assert kinds == {"work", "jobs", "scores", "retrainings", "ledger", "features", "locks", "baselines"}
    assert not [name for name in bucket.objects() if name.endswith(".pt") or "check-" in name]
    assert not {"work", "jobs", "scores", "ledger", "features"} & {path.name for path in bucket.storage.iterdir()}


def test_a_rerun_finds_everything_finished_and_a_second_night_trains_on_new_data(bucket: InBucket, tmp_path: Path) -> None:
    again = bucket.json("retrain", "plan.yaml")
    assert (again["counts"]["variants_trained"], again["counts"]["variants_reused"]) == (0, 2)
    images = sorted(bucket.folder.glob("data/images/*/*.bmp"))[:3]
    for image in images:
        new = tmp_path / "new" / image.parent.name / f"new-{image.name}"
        new.parent.mkdir(parents=True, exist_ok=True)
        content = bytearray(image.read_bytes())
        content[-1] ^= 1
        new.write_bytes(content)
    night: dict[str, Any] = bucket.json("retrain", "plan.yaml", "--source", str(tmp_path / "new"))
    assert night["counts"]["variants_trained"] == 2
    assert night["counts"]["samples"] == again["counts"]["samples"] + 3
    assert night["verdict"]["reasons"]
    assert len(bucket.json("models", "history", "digits")["history"]) == 2


def test_a_training_that_starts_from_the_champion_takes_its_weights_from_the_bucket(bucket: InBucket) -> None:
    (bucket.folder / "champion.yaml").write_text(
        PLAN.replace("weights: none", "weights: champion").replace("[none, lp_ft]", "all")
    )
    night = bucket.json("retrain", "champion.yaml")
    assert night["counts"]["variants_trained"] == 1
    (stored,) = bucket.objects("weights").values()
    (copy,) = (bucket.folder.parent / "cache" / "headstart" / "weights").glob("*.pth")
    assert copy.read_bytes() == stored
    again = bucket.json("retrain", "champion.yaml")
    assert again["counts"]["variants_trained"] == 0


def test_no_secret_is_in_what_was_written(bucket: InBucket) -> None:
    assert not [name for name, content in bucket.objects().items() if SECRET.encode() in content]
    logs = [path for path in bucket.folder.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]


def test_a_workspace_that_was_moved_and_a_storage_that_was_copied_to_another_bucket_are_found_finished_there(
    bucket: InBucket, radosgw: Radosgw, tmp_path: Path
) -> None:
    moved = bucket.folder.parent / "moved"
    shutil.move(bucket.folder, moved)
    other = InBucket(moved, radosgw, "moved")
    for name, content in bucket.objects().items():
        other.client.put_object(Bucket="moved", Key=f"team a/pets/{name}", Body=content)
    before = other.objects()
    again = other.json("retrain", "plan.yaml")
    assert (again["counts"]["variants_trained"], again["counts"]["variants_reused"]) == (0, 2)
    assert other.objects("work") == {name: content for name, content in before.items() if name.startswith("work/")}
    for version in ("1", "2"):
        other.run("models", "pull", f"digits@{version}", str(tmp_path / version))
        assert bundles.load(tmp_path / version).variant.backbone == "shufflenet_v2_x1_0"
