"""Samples and masks on a node without the workspace, from an S3 server over HTTP."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from flows import job, objects
from flows.errors import AskedWrongly, Unreachable
from flows.job.datasets import Splits
from flows.job.trunks import JobFeatures
from flows.landing.digits import bitmap
from flows.objects import packing
from flows.objects.node import NodeObjects
from flows.objects.node_cache import NodeCache
from flows.objects.packing import write_packs
from flows.objects.reading import Reader
from flows.objects.requests import PackPart, plan_requests
from flows.records import DataVersion, Mask, Remote, Sample, Weights, Work, Workers
from flows.sample_files import files_of, locate, locate_mask, prefetch
from flows.stages.data import check_remote_holds
from heads.spec import Fit, Head, Variant
from tests import object_store
from tests.object_store import Bucket

REMOTE = Remote("s3://pets/data")
NUM_OBJECTS = 200


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Bucket]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with object_store.serving(monkeypatch) as bucket:
        bucket.page_length = 1000
        yield bucket
        objects._NODES.clear()


def content_of(number: int, num_bytes: int = 2000) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(num_bytes)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def key_of(digest: str) -> str:
    return f"data/files/md5/{digest[:2]}/{digest[2:]}"


def fill(bucket: type[Bucket], count: int = NUM_OBJECTS, num_bytes: int = 2000) -> list[str]:
    """Objects in the remote; their digests."""
    contents = [content_of(number, num_bytes) for number in range(count)]
    bucket.objects.update({key_of(md5(content)): content for content in contents})
    return [md5(content) for content in contents]


def node(folder: Path, max_bytes: int | None = None) -> NodeObjects:
    return NodeObjects(REMOTE, NodeCache(folder, max_bytes))


def read(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def copies(folder: Path) -> dict[str, bytes]:
    return {path.parent.name + path.name: path.read_bytes() for path in folder.glob("objects/??/*")}


def wait_for(true: object) -> None:
    assert callable(true)
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def version(bucket: type[Bucket], tmp_path: Path) -> DataVersion:
    """A version of which this machine has neither the workspace nor a copy."""
    digests = fill(bucket, 20)
    labels = [{"label": "a", "mask": f"masks/{number}.png"} for number in range(10)]
    samples = tuple(Sample(digest, f"{number}.png", "train", labels[number]) for number, digest in enumerate(digests[:10]))
    masks = {f"masks/{number}.png": Mask(digest, {0: 1}) for number, digest in enumerate(digests[10:])}
    return DataVersion("d" * 32 + ".dir", "r" * 40, samples, tmp_path / "gone", (tmp_path / "none",), masks, REMOTE)


def test_samples_and_masks_come_from_the_remote_once_a_node(version: DataVersion, bucket: type[Bucket]) -> None:
    prefetch(version, files_of(version, version.samples))
    found = [locate(version, sample) for sample in version.samples]
    masks = [locate_mask(version, file) for file in version.masks]
    assert all(isinstance(file, Path) for file in (*found, *masks))
    assert [md5(read(file)) for file in found] == [sample.digest for sample in version.samples]
    assert [md5(read(file)) for file in masks] == [mask.digest for mask in version.masks.values()]
    # Another process of the node asks for nothing.
    bucket.asked.clear()
    objects._NODES.clear()
    prefetch(version, files_of(version, version.samples))
    assert [locate(version, sample) for sample in version.samples] == found
    assert bucket.asked == []


def test_readers_and_what_is_fetched_ahead_of_them_never_ask_for_an_object_twice(bucket: type[Bucket], tmp_path: Path) -> None:
    digests, reader = fill(bucket, 12), Reader(REMOTE)
    for number in range(12):
        bucket.asked.clear()
        one = NodeObjects(REMOTE, NodeCache(tmp_path / str(number), None), reader)
        one.prefetch("reader", digests)
        with ThreadPoolExecutor(3) as readers:
            found = list(readers.map(one.take, digests * 2))
        assert [md5(read(content)) for content in found] == digests * 2
        assert len(bucket.gets()) == len(digests)


def _read_half(digests: list[str], folder: Path) -> None:
    one = node(folder)
    for digest in digests:
        one.take(digest)


def test_what_a_process_and_its_readers_fetch_is_counted_by_object_and_what_is_kept_is_not(
    bucket: type[Bucket], tmp_path: Path
) -> None:
    digests = fill(bucket, 100)
    assert objects.num_fetched() == 0
    with objects.counting(tmp_path):
        readers = [get_context("fork").Process(target=_read_half, args=(digests[n::2], tmp_path / "node")) for n in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert objects.num_fetched() == len(digests) == len(bucket.gets())
        _read_half(digests, tmp_path / "node")
        assert objects.num_fetched() == len(digests)
    assert objects.num_fetched() == 0, "nobody counts"


def test_a_reachable_workspace_is_read_as_it_is_and_nothing_is_copied(
    version: DataVersion, bucket: type[Bucket], tmp_path: Path
) -> None:
    digests = [sample.digest for sample in version.samples]
    for digest in (*digests, version.digest):
        path = tmp_path / "none" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.objects.get(key_of(digest), b"[]"))
    prefetch(version, files_of(version, version.samples))
    assert {locate(version, sample).parent.parent for sample in version.samples} == {tmp_path / "none"}
    assert bucket.asked == []
    assert not (tmp_path / "home").exists()


def test_a_missing_object_is_named_with_its_sample_and_what_to_do(version: DataVersion, bucket: type[Bucket]) -> None:
    sample = version.samples[3]
    del bucket.objects[key_of(sample.digest)]
    with pytest.raises(AskedWrongly, match=rf"image 3\.png .*files/md5/{sample.digest[:2]}/{sample.digest[2:]}; run `dvc push`"):
        locate(version, sample)


def test_what_the_remote_lacks_is_found_by_its_listing_before_a_training(version: DataVersion, bucket: type[Bucket]) -> None:
    bucket.page_length = 7
    check_remote_holds(version)
    lost = version.samples[3].digest
    del bucket.objects[key_of(lost)]
    with pytest.raises(AskedWrongly, match=rf"s3://pets/data lacks 1 file of .*3\.png \(md5 {lost}\).*`dvc push`"):
        check_remote_holds(version)
    assert bucket.gets() == []


def test_bytes_that_are_not_those_of_their_name_are_never_kept(
    version: DataVersion, bucket: type[Bucket], tmp_path: Path
) -> None:
    sample = version.samples[3]
    bucket.objects[key_of(sample.digest)] = b"something else"
    with pytest.raises(AskedWrongly, match=r"image 3\.png .* is damaged on its remote.*dvc push"):
        locate(version, sample)
    assert sample.digest not in copies(tmp_path / "home/headstart/data")


def test_wrong_keys_are_refused_at_once_and_not_shown(version: DataVersion, bucket: type[Bucket]) -> None:
    bucket.refused = True
    with pytest.raises(AskedWrongly, match=r"refuses .*403 AccessDenied.*AWS_ACCESS_KEY_ID") as refusal:
        locate(version, version.samples[0])
    assert "Signature" not in str(refusal.value)


def test_a_server_that_is_busy_for_a_while_is_asked_again_with_one_line(
    version: DataVersion, bucket: type[Bucket], caplog: pytest.LogCaptureFixture
) -> None:
    bucket.busy = 8
    with caplog.at_level(logging.WARNING):
        prefetch(version, files_of(version, version.samples))
        assert [md5(read(locate(version, sample))) for sample in version.samples] == [s.digest for s in version.samples]
    assert bucket.busy == 0
    assert [record.getMessage() for record in caplog.records if "in trouble" in record.getMessage()] == [
        "the data remote s3://pets/data is in trouble (it answered 503 SlowDown); trying again"
    ]


def test_a_server_that_stays_away_ends_in_words(bucket: type[Bucket]) -> None:
    reader = Reader(Remote("s3://pets/data", "http://127.0.0.1:9"), patience_seconds=0.7)
    with pytest.raises(Unreachable, match=r"did not serve files/md5/ab for 1 s: Could not connect") as error:
        reader.read("files/md5/ab")
    assert "Signature" not in str(error.value)


def test_where_there_is_no_room_samples_are_read_in_order_without_being_kept(
    bucket: type[Bucket], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digests = fill(bucket)
    small = node(tmp_path / "small", max_bytes=50_000)
    small.pin("all", lambda: digests)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            small.prefetch("reader", digests)
            assert [md5(read(small.take(digest))) for digest in digests] == digests
    assert 15 <= len(copies(tmp_path / "small")) <= 25
    assert sum("without being kept" in record.getMessage() for record in caplog.records) == 1
    # Once a pass each, but for the few that several threads ask for as the folder fills up.
    assert len(bucket.gets()) <= 2 * NUM_OBJECTS + 40


def test_a_disk_that_refuses_copies_is_said_once_and_read_past(
    bucket: type[Bucket], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digests = fill(bucket)
    (tmp_path / "file").write_text("where the folder should be")
    refusing = node(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        refusing.pin("all", lambda: digests)
        refusing.prefetch("reader", digests)
        assert [md5(read(refusing.take(digest))) for digest in digests] == digests
    assert sum("without being kept" in record.getMessage() for record in caplog.records) == 1


def test_the_least_recently_used_copies_make_way_and_pinned_ones_stay(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, max_bytes=100_000)
    contents = [content_of(number, 1000) for number in range(150)]
    cache.pin([md5(content) for content in contents[:20]])
    for age, content in enumerate(contents):
        path = cache.keep(md5(content), content)
        assert path
        os.utime(path, (age, age))
    kept = copies(tmp_path)
    assert sum(map(len, kept.values())) <= 90_000
    assert {md5(content) for content in contents[:20]} <= kept.keys()
    assert md5(contents[20]) not in kept
    assert md5(contents[149]) in kept
    # The pins of a process that ended hold nothing.
    program = "import sys; from pathlib import Path; from flows.objects.node_cache import NodeCache; "
    ended = program + "NodeCache(Path(sys.argv[1]), 100_000).pin(sys.argv[2:])"
    subprocess.run([sys.executable, "-c", ended, str(tmp_path), *(md5(content) for content in contents[100:])], check=True)
    fresh = NodeCache(tmp_path, max_bytes=100_000)
    for number in range(200, 300):
        content = content_of(number, 1000)
        assert fresh.keep(md5(content), content)
    assert md5(contents[100]) not in copies(tmp_path)
    assert {md5(content) for content in contents[:20]} <= copies(tmp_path).keys()


@pytest.mark.parametrize("text", ["lots", "-5GB"])
def test_a_limit_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_MAX_BYTES", text)
    with pytest.raises(AskedWrongly, match=f"HEADSTART_CACHE_MAX_BYTES={text}: no size"):
        objects.cache_status()


FETCH = """
import sys
from pathlib import Path
from flows.objects.node import NodeObjects
from flows.objects.node_cache import NodeCache
from flows.records import Remote
node = NodeObjects(Remote("s3://pets/data"), NodeCache(Path(sys.argv[1])))
digests = sys.argv[2:]
node.prefetch("reader", digests)
for digest in digests:
    node.take(digest)
print("done")
"""


def test_a_fetch_that_is_killed_leaves_whole_files_only_and_another_goes_on(bucket: type[Bucket], tmp_path: Path) -> None:
    digests = fill(bucket, 400, 20_000)
    for _ in range(2):
        enough = len(copies(tmp_path)) + 20
        fetch = subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path), *digests])
        while len(list(tmp_path.glob("objects/??/*"))) < enough:
            assert fetch.poll() is None
        fetch.send_signal(signal.SIGKILL)
        fetch.wait()
        assert all(md5(content) == digest for digest, content in copies(tmp_path).items())
    assert len(copies(tmp_path)) < len(digests)
    done = subprocess.run([sys.executable, "-c", FETCH, str(tmp_path), *digests], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert copies(tmp_path).keys() == set(digests)


def pack(bucket: type[Bucket], digests: Sequence[str], folder: Path) -> int:
    """Pack these objects of the remote, from files as the machine that ingests has them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {digest: folder / digest for digest in digests}
    for digest, path in files.items():
        path.write_bytes(bucket.objects[key_of(digest)])
    return write_packs(Reader(REMOTE), folder / "indexes", files)


def test_packed_objects_come_by_parts_and_each_night_adds_a_pack_of_its_own(bucket: type[Bucket], tmp_path: Path) -> None:
    digests = fill(bucket, 300)
    assert pack(bucket, digests[:200], tmp_path / "files") == 1
    first = set(bucket.objects)
    assert pack(bucket, digests, tmp_path / "files") == 1
    assert first < set(bucket.objects)
    # Nothing is new, or too little: no pack.
    assert pack(bucket, digests, tmp_path / "files") == 0
    few = [*digests, *fill(bucket, 310)[300:]]
    assert pack(bucket, few, tmp_path / "files") == 0
    bucket.asked.clear()
    reader = node(tmp_path / "node")
    with objects.counting(tmp_path):
        reader.prefetch("reader", digests)
        wait_for(lambda: copies(tmp_path / "node").keys() == set(digests))
        assert objects.num_fetched() == len(digests)
    assert [md5(read(reader.take(digest))) for digest in digests] == digests
    packed = [key for key in bucket.gets() if key.endswith(".pack")]
    assert len(packed) <= 2
    assert len(bucket.gets()) < 300


def test_a_pack_whose_index_a_kill_left_unwritten_is_removed_once_nobody_can_write_it_any_more(
    bucket: type[Bucket], tmp_path: Path
) -> None:
    digests = fill(bucket, 100)
    pack(bucket, digests, tmp_path / "files")
    whole = {key for key in bucket.objects if "/packs/" in key}
    bucket.objects |= {f"data/packs/{name}.pack": b"half" for name in ("old", "new")}
    for key in bucket.objects:
        bucket.written_at[key] = time.time() - (60.0 if "new" in key else 2 * packing.LEFT_SECONDS)
    assert pack(bucket, digests, tmp_path / "files") == 0
    left = {key for key in bucket.objects if "/packs/" in key}
    assert {key.rpartition("/")[2] for key in left - whole} == {"new.pack"}
    assert whole <= left


def test_a_part_with_other_bytes_than_its_index_says_is_left_for_the_objects_themselves(
    bucket: type[Bucket], tmp_path: Path
) -> None:
    digests = fill(bucket, 200)
    pack(bucket, digests, tmp_path / "files")
    for key in [key for key in bucket.objects if key.endswith(".pack")]:
        bucket.objects[key] = bytes(len(bucket.objects[key]))
    reader = node(tmp_path / "node")
    reader.prefetch("reader", digests)
    assert [md5(read(reader.take(digest))) for digest in digests] == digests
    assert all(md5(content) == digest for digest, content in copies(tmp_path / "node").items())


def test_of_a_pack_that_is_mostly_unwanted_only_ranges_are_asked_for(bucket: type[Bucket], tmp_path: Path) -> None:
    digests = fill(bucket, 400, 100_000)
    pack(bucket, digests, tmp_path / "files")
    from flows.objects.packing import read_packs

    packs = read_packs(Reader(REMOTE), tmp_path / "indexes")
    wanted = digests[::10]
    parts = [
        part for part in plan_requests([*(md5(bytes([n])) for n in range(64)), *wanted], packs) if isinstance(part, PackPart)
    ]
    assert parts == []
    assert set(plan_requests(wanted * 3, packs)) == set(wanted)
    whole = [
        part for part in plan_requests([*(md5(bytes([n])) for n in range(64)), *digests], packs) if isinstance(part, PackPart)
    ]
    assert sum(part.end - part.start for part in whole) == 400 * 100_000
    assert {row[0] for part in whole for row in part.objects} == set(digests)


def test_a_node_whose_features_are_stored_fetches_no_image(
    bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [bitmap(bytes([number, *range(63)]), 8) for number in range(12)]
    bucket.objects.update({key_of(md5(picture)): picture for picture in pictures})
    samples = tuple(
        Sample(md5(picture), f"{number}.bmp", "train" if number < 8 else "val", {"label": "ab"[number % 2]})
        for number, picture in enumerate(pictures)
    )
    version = DataVersion("d" * 32 + ".dir", "r" * 40, samples, tmp_path / "gone", (tmp_path / "none",), remote=REMOTE)
    fit = Fit(image_size_px=32, augment="none", epochs=1)
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), freeze="all", fit=fit)
    work = Work("w", variant, Weights("none"))
    asked = job.Job("train", "k", "tiny", tmp_path, version, {"label": ("a", "b")}, Workers(), works=(work,))

    def night() -> int:
        """Fill what lacks, and read the features as a training does; how many objects were asked for."""
        bucket.asked.clear()
        features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
        features.fill(asked.works)
        (loaders,) = features.loaders(work, *(features.splits.open(split, variant) for split in ("train", "val"))).values()
        assert sum(int(batch.weights.sum()) for loader in loaders for batch in loader) == len(samples)
        return len(bucket.gets())

    assert night() == len(samples)
    assert night() == 0
    # Another node has no copy of an image, and needs none.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    objects._NODES.clear()
    assert night() == 0
