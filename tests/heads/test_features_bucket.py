"""A feature store under an object store keeps the contract of one in a folder, and reads rows from copies on its machine."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch

from heads.errors import HeadsError
from heads.features import FeatureStore, Key, local_cache, trunk_id
from heads.features.bucket import PEEK_BYTES, ShardBucket
from tests import object_store
from tests.heads.test_features import (  # noqa: F401  the contract, collected here once more
    TRUNK,
    kept,
    keys_of,
    pooled,
    test_a_batch_comes_in_the_order_of_the_keys_across_shards,
    test_a_sample_is_missing_until_every_tap_asked_for_is_stored,
    test_a_tap_holds_one_shape_and_dtype,
    test_every_bit_of_every_dtype_comes_back,
    test_threads_read_the_same_features_at_once,
    write,
)

ADDRESS = "s3://pets/night/features"
BELOW = f"night/features/{TRUNK}/"
OnNode = Callable[[str], FeatureStore]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[object_store.Bucket]]:
    """An S3 server, and nothing remembered of another one; this machine keeps copies under `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store.serving(monkeypatch) as handler:
        handler.page_length = 1000
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield handler
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest, bucket: type[object_store.Bucket]) -> Iterator[FeatureStore]:
    yield FeatureStore(ADDRESS if request.param == "s3" else "memory://features")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def on_node(bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OnNode:
    """A store as another machine opens it, with copies of its own."""

    def open_store(node: str) -> FeatureStore:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / node))
        return FeatureStore(ADDRESS)

    return open_store


def shards(bucket: type[object_store.Bucket]) -> list[str]:
    return sorted(key for key in bucket.objects if key.endswith(".safetensors"))


def copies(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def flip(content: bytes, offset: int) -> bytes:
    offset %= len(content)
    return content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :]


def test_the_objects_are_the_files_that_a_folder_would_hold(bucket: type[object_store.Bucket], tmp_path: Path) -> None:
    local, remote = FeatureStore(tmp_path / "local"), FeatureStore(ADDRESS)
    for root in (local, remote):
        for start in (0, 5):
            write(root.trunk(TRUNK), range(start, start + 5))
        root.describe(TRUNK, {"backbone": "mobilenet_v2"})
    files = {path.relative_to(tmp_path / "local").as_posix(): path.read_bytes() for path in (tmp_path / "local").rglob("*.*")}
    assert {key.removeprefix("night/features/"): content for key, content in bucket.objects.items()} == files
    assert remote.description(TRUNK) == {"backbone": "mobilenet_v2"}
    assert remote.description("0" * 16) == {}
    (near,), (far,) = local.status(), remote.status()
    assert (near.num_bytes, near.num_shards, near.num_samples, near.taps) == (
        far.num_bytes,
        far.num_shards,
        far.num_samples,
        far.taps,
    )
    assert abs(near.used_at.timestamp() - far.used_at.timestamp()) < 60


def test_two_machines_see_each_others_shards(on_node: OnNode, tmp_path: Path) -> None:
    keys, (one, other) = keys_of(range(20)), (on_node("one"), on_node("other"))
    write(one.trunk(TRUNK), range(10))
    assert other.trunk(TRUNK).missing(keys, ["pooled"]) == keys[10:]
    write(other.trunk(TRUNK), range(10, 20))
    for node in (one, other):
        assert node.trunk(TRUNK).missing(keys, ["pooled", "map"]) == []
        assert torch.equal(node.trunk(TRUNK).open(keys, ["pooled"])[torch.arange(20)]["pooled"], pooled(keys))
    assert len(copies(tmp_path / "one")) == len(copies(tmp_path / "other")) == 2


@pytest.mark.parametrize("where", ["length", "header", "data", "cut in the data", "cut in the header", "empty"])
def test_a_damaged_object_is_found_and_removed_and_its_samples_are_missing(
    bucket: type[object_store.Bucket], on_node: OnNode, where: str
) -> None:
    writer, keys = on_node("writer"), keys_of(range(20))
    write(writer.trunk(TRUNK), range(10))
    (first,) = shards(bucket)
    write(writer.trunk(TRUNK), range(10, 20))
    (damaged,) = set(shards(bucket)) - {first}
    whole = bucket.objects[damaged]
    bucket.objects[damaged] = {
        "length": flip(whole, 1),
        "header": flip(whole, 60),
        "data": flip(whole, -5),
        "cut in the data": whole[:-1],
        "cut in the header": whole[:100],
        "empty": b"",
    }[where]
    # Its writer has a whole copy, and verifies the object all the same.
    for store in (writer, on_node("reader")):
        assert [found.name for found in store.verify()] == [damaged.rpartition("/")[2]]
    assert damaged in bucket.objects, "to verify changes nothing"
    assert store.trunk(TRUNK).missing(keys, ["pooled", "map"]) == keys[10:]
    assert shards(bucket) == [first]
    write(store.trunk(TRUNK), range(10, 20))
    assert bucket.objects[damaged] == whole
    assert store.trunk(TRUNK).missing(keys, ["pooled", "map"]) == []
    assert store.verify() == []


@pytest.mark.parametrize("where", ["header", "data", "cut", "empty"])
def test_a_damaged_copy_is_fetched_again(bucket: type[object_store.Bucket], tmp_path: Path, where: str) -> None:
    write(FeatureStore(ADDRESS).trunk(TRUNK), range(10))
    (copy,), keys = copies(tmp_path / "node"), keys_of(range(10))
    whole = copy.read_bytes()
    copy.write_bytes({"header": flip(whole, 60), "data": flip(whole, -5), "cut": whole[:-1], "empty": b""}[where])
    bucket.asked.clear()
    fresh = FeatureStore(ADDRESS).trunk(TRUNK)
    assert fresh.missing(keys, ["pooled", "map"]) == []
    assert torch.equal(fresh.open(keys, ["map"])[torch.arange(10)]["map"], pooled(keys, 8).view(-1, 2, 2, 2))
    # Once more where one of two threads drops what the other has fetched.
    assert set(bucket.fetched()) == set(shards(bucket)) == {f"{BELOW}{copy.name}"}
    assert copy.read_bytes() == whole


def test_a_damaged_copy_that_many_threads_find_at_once_costs_no_object(bucket: type[object_store.Bucket], tmp_path: Path) -> None:
    keys, taps = keys_of(range(10)), [f"tap {number}" for number in range(8)]
    FeatureStore(ADDRESS).trunk(TRUNK).write(keys, {tap: pooled(keys) for tap in taps})
    (copy,), whole = copies(tmp_path / "node"), dict(bucket.objects)
    for _ in range(5):
        copy.write_bytes(copy.read_bytes()[:-1500] + bytes(1500))
        with ThreadPoolExecutor(4) as pool:
            looks = pool.map(lambda _: FeatureStore(ADDRESS).trunk(TRUNK).missing(keys, taps), range(4))
            assert list(looks) == [[]] * 4
        assert bucket.objects == whole


def test_headers_are_read_without_the_rows_and_once(bucket: type[object_store.Bucket], on_node: OnNode, tmp_path: Path) -> None:
    keys = [Key(f"f{number:031x}") for number in range(4000)]
    on_node("writer").trunk(TRUNK).write(keys, {"x": torch.rand(4000, 64)})
    write(on_node("writer").trunk(TRUNK), range(5))
    bucket.asked.clear()
    reader = on_node("reader")
    (status,) = reader.status()
    assert (status.num_samples, status.num_shards) == (4005, 2)
    gets = [(key, part) for method, key, part in bucket.asked if method == "GET"]
    assert bucket.fetched() == []
    # The larger header takes a second request.
    assert sorted(part for _, part in gets)[0].startswith("bytes=0-")
    assert len(gets) == 3
    asked = sum(int(part.partition("-")[2]) - int(part.removeprefix("bytes=").partition("-")[0]) + 1 for _, part in gets)
    assert PEEK_BYTES < asked < sum(map(len, bucket.objects.values())) / 4
    bucket.asked.clear()
    again = FeatureStore(ADDRESS)
    assert again.status() == [status]
    assert again.listed(TRUNK, keys[:3], ["x"])["x"].all()
    assert again.trunk(TRUNK).num_samples("x") == 4000
    assert {method for method, _, _ in bucket.asked} <= {"LIST", "HEAD"}
    assert copies(tmp_path / "reader") == []


def test_a_look_at_a_trunk_is_one_listing_and_its_use_is_noted_once(bucket: type[object_store.Bucket]) -> None:
    mine = FeatureStore(ADDRESS).trunk(TRUNK)
    write(mine, range(5))
    assert mine.missing(keys_of(range(5)), ["pooled"]) == []
    bucket.asked.clear()
    for start in (5, 10):
        write(mine, range(start, start + 5))
        mine.open(keys_of(range(5)), ["pooled"])
    assert mine.missing(keys_of(range(15)), ["pooled"]) == []
    assert [(method, key) for method, key, _ in bucket.asked if method == "LIST"] == [("LIST", BELOW)] * 3
    assert [method for method, _, _ in bucket.asked if method != "LIST"] == ["PUT", "PUT"]


def test_what_was_used_least_recently_goes_first_and_readers_go_on(bucket: type[object_store.Bucket]) -> None:
    store, trunks = FeatureStore(ADDRESS), [trunk_id({"cut": cut}) for cut in range(3)]
    for number, trunk in enumerate(trunks):
        store.describe(trunk, {"number": number})
        for start in (0, 10):
            write(store.trunk(trunk), range(start, start + 10))
    for key in bucket.objects:
        bucket.written_at[key] = 1e9 + 1000 * trunks.index(key.split("/")[2].removesuffix(".json"))
    assert [status.trunk for status in store.status()] == trunks
    one = len(bucket.objects[shards(bucket)[0]])
    features = FeatureStore(ADDRESS).trunk(trunks[0]).open(keys_of([0, 15]), ["pooled"])
    assert store.prune(6 * one).num_shards == 0
    freed = store.prune(4 * one - 1)
    assert (freed.num_shards, freed.num_bytes) == (3, 3 * one)
    assert [(status.trunk, status.num_shards) for status in store.status()] == [(trunks[2], 1), (trunks[0], 2)]
    assert [store.description(trunk).get("number") for trunk in trunks] == [0, None, 2]
    assert store.prune(0).num_shards == 3
    assert bucket.objects == {}
    assert torch.equal(features[torch.arange(2)]["pooled"], pooled(keys_of([0, 15])))
    assert store.trunk(trunks[0]).missing(keys_of([0]), ["pooled"]) == keys_of([0])


def test_one_process_fetches_a_shard_while_the_others_of_its_machine_wait(
    bucket: type[object_store.Bucket], on_node: OnNode, tmp_path: Path
) -> None:
    for start in range(0, 40, 10):
        write(on_node("writer").trunk(TRUNK), range(start, start + 10))
    on_node("reader")
    # What another was killed in the middle of is no obstacle.
    folder = tmp_path / "reader" / copies(tmp_path / "writer")[0].parent.relative_to(tmp_path / "writer")
    folder.mkdir(parents=True)
    (folder / f".partial-{shards(bucket)[0].rpartition('/')[2]}").write_bytes(b"half")
    bucket.asked.clear()
    keys = keys_of(range(40))

    def read(_: int) -> bool:
        features = FeatureStore(ADDRESS).trunk(TRUNK).open(keys, ["pooled"])
        return torch.equal(features[torch.arange(40)]["pooled"], pooled(keys))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert sorted(bucket.fetched()) == shards(bucket)
    assert len(copies(tmp_path / "reader")) == 4
    assert list(folder.glob(".partial*")) == []


@pytest.mark.parametrize("seconds", [0.0, 0.2], ids=["as they come", "at once"])
def test_copies_make_way_for_others_and_who_has_them_open_reads_on(
    bucket: type[object_store.Bucket], on_node: OnNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    # As many shards as are fetched at once.
    for start in range(0, 80, 10):
        write(on_node("writer").trunk(TRUNK), range(start, start + 10))
    assert len(shards(bucket)) == ShardBucket.num_readers
    one, keys = len(bucket.objects[shards(bucket)[0]]), keys_of(range(80))

    def usage(path: Path) -> SimpleNamespace:
        """That of a disk for eight shards."""
        return SimpleNamespace(free=8 * one - sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))

    fetch = ShardBucket._fetch

    def fetch_slowly(self: ShardBucket, name: str, goal: Path) -> None:
        time.sleep(seconds)
        fetch(self, name, goal)

    monkeypatch.setattr(local_cache, "shutil", SimpleNamespace(disk_usage=usage))
    monkeypatch.setattr(ShardBucket, "_fetch", fetch_slowly)
    reader = on_node("reader")
    features = reader.trunk(TRUNK).open(keys, ["pooled"])
    assert 1 <= len(copies(tmp_path / "reader")) <= 4
    assert torch.equal(features[torch.arange(80)]["pooled"], pooled(keys))
    assert reader.trunk(TRUNK).missing(keys, ["pooled", "map"]) == []


def test_forked_loaders_read_what_was_opened_and_nothing_is_said_at_the_end(bucket: type[object_store.Bucket]) -> None:
    keys = [Key(f"{number:032x}") for number in range(32)]
    FeatureStore(ADDRESS).trunk(TRUNK).write(keys, {"x": torch.arange(32.0).view(32, 1)})
    code = """
        import sys, torch
        from heads.features import FeatureStore, Key

        kept, keys = FeatureStore(sys.argv[1]).trunk(sys.argv[2]), [Key(f"{number:032x}") for number in range(32)]
        features = kept.open(keys, ["x"])

        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 32

            def __getitem__(self, number):
                return features[torch.tensor([number])]["x"][0]

        for _ in range(2):
            loader = torch.utils.data.DataLoader(Rows(), batch_size=8, num_workers=2, multiprocessing_context="fork")
            assert torch.cat(list(loader)).flatten().tolist() == list(range(32))
            assert kept.missing(keys, ["x"]) == []
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), ADDRESS, TRUNK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_bucket_refused_and_missing_credentials_and_a_dead_server_are_told(
    bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asks: list[Callable[[FeatureStore], object]] = [
        FeatureStore.status,
        lambda store: store.trunk(TRUNK).missing(keys_of([1]), ["x"]),
        lambda store: write(store.trunk(TRUNK), [1]),
        lambda store: store.description(TRUNK),
    ]
    for ask in asks:
        with pytest.raises(HeadsError, match=r"s3://nowhere/x.*there is no bucket 'nowhere'; make it"):
            ask(FeatureStore("s3://nowhere/x"))
        bucket.refused = True
        with pytest.raises(HeadsError, match=f"{ADDRESS}.*refused.*AccessDenied.*AWS_PROFILE"):
            ask(FeatureStore(ADDRESS))
        bucket.refused = False
    for name, value, words in (
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9", "127.0.0.1:9.*AWS_ENDPOINT_URL_S3"),
        ("AWS_PROFILE", "nobody", "no credentials.*nobody.*AWS_PROFILE"),
    ):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.setenv(name, value)
        with pytest.raises(HeadsError, match=f"{ADDRESS}.*{words}"):
            FeatureStore(ADDRESS).status()
    with pytest.raises(HeadsError, match="no address of an object store"):
        FeatureStore("nix://pets/x")


def test_a_store_that_may_only_be_read_is_read(bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    write(FeatureStore(ADDRESS).trunk(TRUNK), range(3))
    monkeypatch.setattr(
        bucket,
        "do_PUT",
        lambda handler: (handler.rfile.read(int(handler.headers["Content-Length"])), handler._fail(403, "AccessDenied")),
    )
    store = FeatureStore(ADDRESS)
    assert len(store.trunk(TRUNK).open(keys_of(range(3)), ["pooled"])) == 3
    store.describe(TRUNK, {"backbone": "x"})
    with pytest.raises(HeadsError, match="refused"):
        write(store.trunk(TRUNK), range(3, 6))


def test_a_shard_that_goes_between_finding_and_opening_is_missing(
    bucket: type[object_store.Bucket], on_node: OnNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(on_node("writer").trunk(TRUNK), range(4))
    found, fetch = on_node("reader").trunk(TRUNK), ShardBucket._fetch

    def remove_and_fetch(place: ShardBucket, name: str, goal: Path) -> None:
        bucket.objects.clear()
        fetch(place, name, goal)

    monkeypatch.setattr(ShardBucket, "_fetch", remove_and_fetch)
    assert found.missing(keys_of(range(4)), ["map"]) == keys_of(range(4))
