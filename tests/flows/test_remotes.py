"""Workspaces whose data is pushed to an object store, with real git, real DVC and an S3 server over HTTP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import dataset
from flows.errors import AskedWrongly, Unreachable
from flows.landing import ingest
from flows.landing.digits import bitmap
from flows.records import Remote
from tests import object_store
from tests.object_store import Bucket

REMOTE = Remote("s3://pets/data")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    with object_store.serving(monkeypatch) as bucket:
        bucket.page_length = 1000
        yield bucket


def git(workspace: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(workspace), *arguments], capture_output=True, text=True, check=True).stdout


def bring_in(workspace: Path, number: int) -> str:
    for label in "35":
        folder = workspace.parent / "source" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.bmp").write_bytes(bitmap(bytes([number, int(label), *range(62)]), 8))
    ingest(workspace.parent / "source", workspace / "data")
    return dataset.record_version(workspace, f"number {number}").digest


def held(bucket: type[Bucket]) -> set[str]:
    return {key.removeprefix("data/files/md5/").replace("/", "") for key in bucket.objects}


def test_a_new_workspace_has_its_bucket_in_the_first_commit_and_pushes_before_it_commits(
    tmp_path: Path, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Remote("s3://pets/data", os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    folder = dataset.init_workspace(tmp_path / "new", server)
    config = git(folder, "show", "HEAD:.dvc/config")
    assert f"url = s3://pets/data\n    endpointurl = {server.endpoint}" in config
    assert "key" not in config
    digest = bring_in(folder, 1)
    assert digest in held(bucket)
    assert {sample.digest for sample in dataset.read_version(folder).samples} <= held(bucket)
    assert dataset.read_remote(folder) == dataset.RemoteStatus("storage", "s3://pets/data", server.endpoint)
    dataset.init_workspace(folder, server)
    assert git(folder, "rev-list", "--count", "HEAD").strip() == "2"


def test_a_push_that_is_refused_commits_no_version(tmp_path: Path, bucket: type[Bucket]) -> None:
    folder = dataset.init_workspace(tmp_path / "new", REMOTE)
    bucket.refused = True
    with pytest.raises(Exception, match=r"DVC failed|can not keep data"):
        bring_in(folder, 1)
    assert not (folder / "data.dvc").exists()
    bucket.refused = False
    assert bring_in(folder, 1) in held(bucket)


def test_a_remote_that_is_set_later_gets_every_version_that_is_whole_here(tmp_path: Path, bucket: type[Bucket]) -> None:
    folder = dataset.init_workspace(tmp_path / "old")
    first, second = bring_in(folder, 1), bring_in(folder, 2)
    status = dataset.set_remote(folder, REMOTE)
    assert set(status.pushed) == {first, second} <= held(bucket)
    assert status.behind == ()
    assert git(folder, "status", "--porcelain") == ""
    assert "s3://pets/data" in git(folder, "show", "HEAD:.dvc/config")
    # A clone has nothing of it but git, and gets both versions from the bucket.
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(folder), str(clone))
    for digest in (first, second):
        assert dataset.checkout(clone, digest[:12]).digest == digest


def test_a_version_that_is_not_whole_here_stays_behind_and_is_named(tmp_path: Path, bucket: type[Bucket]) -> None:
    folder = dataset.init_workspace(tmp_path / "old")
    first, second = bring_in(folder, 1), bring_in(folder, 2)
    (folder / ".dvc/cache/files/md5" / first[:2] / first[2:]).unlink()
    status = dataset.set_remote(folder, REMOTE)
    assert (status.pushed, status.behind) == ((second,), (first,))
    assert first not in held(bucket)


def test_a_remote_that_cannot_be_had_changes_nothing(
    tmp_path: Path, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset.init_workspace(tmp_path / "old")
    bring_in(folder, 1)
    before = (folder / ".dvc/config").read_bytes(), git(folder, "rev-parse", "HEAD")
    with pytest.raises(AskedWrongly, match="NoSuchBucket"):
        dataset.set_remote(folder, Remote("s3://cats/data"))
    with pytest.raises(Unreachable, match="does not answer"):
        dataset.set_remote(folder, Remote("s3://pets/data", "http://127.0.0.1:9"))
    with pytest.raises(AskedWrongly, match="does not answer"):
        dataset.init_workspace(tmp_path / "new", Remote("s3://pets/data", "http://127.0.0.1:9"))
    assert not (tmp_path / "new").exists()
    bucket.refused = True
    with pytest.raises(AskedWrongly, match="AccessDenied"):
        dataset.set_remote(folder, REMOTE)
    assert ((folder / ".dvc/config").read_bytes(), git(folder, "rev-parse", "HEAD")) == before


@pytest.mark.parametrize(
    ("address", "endpoint", "words"),
    [
        ("/srv/data", None, "names no bucket"),
        ("s3:///data", None, "names no bucket"),
        ("s3://key:hush@pets/data", None, "no credentials"),
        ("s3://pets/data?versionId=1", None, "no credentials or options"),
        ("s3://pets/data", "http://key:hush@host:9000", "credentials"),
        ("s3://pets/data", "host:9000", "server's address"),
    ],
)
def test_addresses_that_are_no_remote_are_refused_without_their_secrets(address: str, endpoint: str | None, words: str) -> None:
    with pytest.raises(AskedWrongly, match=words) as refusal:
        dataset.parse_remote(address, endpoint)
    assert "hush" not in str(refusal.value)


def test_an_existing_workspace_is_not_given_another_remote_by_init(tmp_path: Path, bucket: type[Bucket]) -> None:
    folder = dataset.init_workspace(tmp_path / "old")
    with pytest.raises(AskedWrongly, match="headstart data remote s3://pets/data"):
        dataset.init_workspace(folder, REMOTE)
