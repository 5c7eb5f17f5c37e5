"""What a machine keeps of a storage in a bucket: bundles and weights by digest, fetched once, checked, in bounded room."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import job, local_copies
from flows.errors import AskedWrongly
from flows.job.job import read_job
from flows.local_copies import keep_here
from flows.places import Bucket, Folder
from flows.records import DataVersion, Weights, Work, Workers
from heads import bundle as bundles
from heads.backbones import check_weights, sized
from heads.data.modalities import preprocess_of
from heads.errors import BundleError
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from tests import object_store
from tests.heads.encoders import write_encoder

VARIANT = Variant(backbone="squeezenet1_1", heads=(Head(target="kind"),), fit=Fit(image_size_px=32))
WORKS = Bucket("s3://pets/nights/works")
PLACE = WORKS.within("w1/bundle")
CLASSES = {"kind": ["ant", "bee"]}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[object_store.Bucket]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with object_store.serving(monkeypatch) as served:
        yield served


@pytest.fixture
def stored(bucket: type[object_store.Bucket], tmp_path: Path) -> Path:
    """A bundle in a folder, and stored in the bucket."""
    folder = tmp_path / "made"
    preprocess = preprocess_of(VARIANT)
    bundles.save(
        folder, model=build_model(VARIANT, CLASSES, None), variant=VARIANT, classes=CLASSES, preprocess=preprocess, facts={}
    )
    with PLACE.filling() as local:
        for file in folder.iterdir():
            (local / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_bundle_is_fetched_once_and_read_from_its_copy(bucket: type[object_store.Bucket], stored: Path) -> None:
    assert keep_here(Folder(stored)) == stored, "one in a folder is read where it lies"
    assert keep_here(WORKS.within("w2/bundle")) is None
    copies = list[Path | None]()
    threads = [threading.Thread(target=lambda: copies.append(keep_here(PLACE))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (copy,) = set(copies)
    assert copy is not None
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        file.name: file.read_bytes() for file in stored.iterdir()
    }
    assert bundles.load(copy).variant == VARIANT
    before = len(bucket.asked)
    assert keep_here(PLACE) == copy
    assert [key for _, key, _ in bucket.asked[before:]] == ["nights/works/w1/bundle/SHA256SUMS"]


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_refused(bucket: type[object_store.Bucket], stored: Path) -> None:
    copy = keep_here(PLACE)
    assert copy is not None
    (copy / "card.md").write_text("another card")
    assert keep_here(PLACE) == copy
    assert (copy / "card.md").read_bytes() == (stored / "card.md").read_bytes()
    bucket.objects["nights/works/w1/bundle/card.md"] = b"another card"
    assert keep_here(PLACE) == copy, "what is whole here is not asked for"
    (copy / "card.md").unlink()
    with pytest.raises(BundleError, match=r"card\.md is not what was written"):
        keep_here(PLACE)


def test_copies_that_were_not_used_for_long_make_room(
    bucket: type[object_store.Bucket], stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_copies, "SHARE_OF_DISK", 0.0)
    for name, age_seconds in (("a" * 64, 2 * local_copies.IN_USE_SECONDS), ("b" * 64, 60)):
        old = tmp_path / "cache" / "headstart" / "bundles" / name
        old.mkdir(parents=True)
        (old / "card.md").write_bytes(bytes(1000))
        os.utime(old, (time.time() - age_seconds,) * 2)
    copy = keep_here(PLACE)
    assert copy is not None
    assert {folder.name for folder in copy.parent.iterdir()} == {"b" * 64, copy.name}


def test_first_weights_travel_with_a_job_whose_storage_is_in_a_bucket(bucket: type[object_store.Bucket], tmp_path: Path) -> None:
    file = tmp_path / "flow" / "first.pth"
    file.parent.mkdir()
    file.write_bytes(b"weights" * 1000)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    works = tuple(Work(f"w{number}", VARIANT, Weights(digest, file)) for number in range(2))
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path, ())
    asked = job.Job("train", "k", "m", "s3://pets/nights", version, CLASSES, Workers(), works=works)
    folder = job.write_job(asked)
    job.write_job(asked)
    assert [key for method, key, _ in bucket.asked if method == "PUT" and "weights" in key] == [f"nights/weights/{digest}.pth"]
    content = file.read_bytes()
    file.unlink()
    there = [work.weights for work in read_job(folder).works]
    assert {weights.digest for weights in there} == {digest}
    assert {weights.path.read_bytes() for weights in there if weights.path} == {content}
    assert there[0].path is not None
    there[0].path.unlink()
    bucket.objects[f"nights/weights/{digest}.pth"] = b"others"
    with pytest.raises(AskedWrongly, match="is not the file that it was"):
        read_job(folder)
    del bucket.objects[f"nights/weights/{digest}.pth"]
    with pytest.raises(AskedWrongly, match="is gone: remove it, and start the retraining again"):
        read_job(folder)


def test_so_does_an_encoder_of_texts_which_is_a_folder(bucket: type[object_store.Bucket], tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "flow" / "encoder")
    digest = check_weights(sized("bert", folder), folder)
    variant = Variant(backbone=sized("bert", folder), heads=(Head(target="kind"),), fit=Fit(max_tokens=16))
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path, ())
    works = (Work("w", variant, Weights(digest, folder)),)
    begun = job.write_job(job.Job("train", "k", "m", "s3://pets/nights", version, CLASSES, Workers(), works=works))
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    (there,) = read_job(begun).works
    assert there.weights.path is not None
    assert {file.name: file.read_bytes() for file in there.weights.path.iterdir()} == content
    assert check_weights(variant.backbone, there.weights.path) == digest
    shutil.rmtree(there.weights.path)
    for change in (lambda objects, name: objects.update({name: b"{}"}), dict.pop):
        change(bucket.objects, f"nights/weights/{digest}/vocab.txt")
        with pytest.raises(AskedWrongly, match="does not hold the weights that it held"):
            read_job(begun)
