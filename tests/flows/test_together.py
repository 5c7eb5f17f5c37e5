"""Works that train side by side, in this process: what they leave on the way, and going on from it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from flows import job
from flows.job.datasets import Splits
from flows.job.training import together
from flows.job.training.sharing import deal_out, load_of, probe_load
from flows.job.trunks import JobFeatures
from flows.places import Root
from flows.records import DataVersion, Sample, Weights, Work, Workers
from heads.spec import Fit, Head, Variant
from heads.training.state import Epoch
from tests import object_store

EPOCHS = 5


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    folder, random, samples = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(18):
        file = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        split = "train" if number < 12 else "val"
        samples.append(Sample(hashlib.md5(file.read_bytes()).hexdigest(), file.name, split, {"label": "ab"[number % 2]}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def order_of(storage: Root, version: DataVersion) -> job.Job:
    works = []
    for design, rate in (("linear", 0.01), ("linear", 0.001), ("mlp", 0.01)):
        fit = Fit(epochs=EPOCHS, batch_size=6, image_size_px=32, learning_rate=rate, augment="none")
        variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label", design=design),), fit=fit)
        works.append(Work(f"{design}-{rate}", variant, Weights("none")))
    return job.Job("train", "k", "tiny", storage, version, {"label": ("a", "b")}, Workers(count=1), works=tuple(works))


def train(order: job.Job) -> None:
    features = JobFeatures(order, Splits(order), torch.device("cpu"))
    features.fill(order.works)
    (group,) = features.fuse(order.works)
    together.train_probes(features, group)


def bundles(order: job.Job) -> list[bytes]:
    files = ("weights.safetensors", "variant.json")
    return [order.work_folder(work).place.read(f"bundle/{file}") or b"" for work in order.works for file in files]


class Killed(Exception):
    """Stands for a kill between two epochs."""


@pytest.fixture(params=["folder", "bucket"])
def storage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Root]:
    """A storage root: a folder, or a prefix of a bucket."""
    if request.param == "folder":
        yield tmp_path / "half"
        return
    with pytest.MonkeyPatch.context() as environment, object_store.serving(environment) as served:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        served.page_length = 1000
        # A file system of an earlier test has that one's address.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield "s3://pets/half"
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def half_done(storage: Root, version: DataVersion, monkeypatch: pytest.MonkeyPatch) -> job.Job:
    """A job that was ended in its third epoch, with a checkpoint an epoch of each work."""
    order, note = order_of(storage, version), together.WorkCheckpointer.note

    def dying(self: together.WorkCheckpointer, epoch: Epoch, save: Callable[[Path], None]) -> None:
        if epoch.index == 2:
            raise Killed
        note(self, epoch, save)

    monkeypatch.setattr(together, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(together, "SAVE_FACTOR", 0.0)
    monkeypatch.setattr(together.WorkCheckpointer, "note", dying)
    with pytest.raises(Killed):
        train(order)
    monkeypatch.undo()
    return order


def test_probes_go_on_from_their_last_checkpoint_and_end_as_if_nothing_had_happened(
    tmp_path: Path, version: DataVersion, half_done: job.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = order_of(tmp_path / "whole", version)
    train(whole)
    assert all(half_done.work_folder(work).fetch_checkpoint() for work in half_done.works)
    trained: list[int] = []
    monkeypatch.setattr(together.WorkCheckpointer, "note", lambda self, epoch, save: trained.append(epoch.index))
    train(half_done)
    assert sorted(trained) == sorted([2, 3, 4] * 3), "two epochs were kept"
    assert bundles(half_done) == bundles(whole)
    assert all(bundles(whole)), "they are there"
    assert not any(half_done.work_folder(work).fetch_checkpoint() for work in half_done.works)
    for work in whole.works:
        result = half_done.work_folder(work).read_result()
        assert result is not None
        assert [epoch.epoch for epoch in result.epochs] == list(range(EPOCHS))


def test_a_damaged_checkpoint_is_left_aside_with_a_word(
    tmp_path: Path,
    version: DataVersion,
    half_done: job.Job,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = order_of(tmp_path / "whole", version)
    train(whole)
    trained: list[int] = []
    monkeypatch.setattr(together.WorkCheckpointer, "note", lambda self, epoch, save: trained.append(epoch.index))
    half_done.work_folder(half_done.works[1]).place.write("training.pt", b"damaged")
    with caplog.at_level(logging.WARNING):
        train(half_done)
    assert "left aside" in caplog.text
    assert sorted(trained) == sorted([*range(EPOCHS), *[2, 3, 4] * 2]), "the others go on from theirs"
    assert bundles(half_done) == bundles(whole)


def test_works_are_dealt_out_so_that_members_end_together(version: DataVersion, tmp_path: Path) -> None:
    works = order_of(tmp_path, version).works
    linear, hidden = works[:2] * 3, works[2:] * 3
    assert [load_of(linear[0]), load_of(hidden[0])] == [EPOCHS, 3 * EPOCHS]
    (one,), (even,) = deal_out([linear], [0.0]), deal_out([linear], [0.0, 0.0])
    assert one == [list(linear)]
    assert even == [list(linear[0::2]), list(linear[1::2])]
    first, second = deal_out([[*linear, *hidden], linear[:2]], [0.0, 2.0 * EPOCHS])
    # In linear heads: 3 + 3 + 1 + 1 + 1 against 2 + 3 + 1 + 1 + 1, so that the second member is the next one to get work.
    assert first == [[hidden[0], hidden[2], linear[1], linear[3], linear[5]], [hidden[1], linear[0], linear[2], linear[4]]]
    assert second == [[linear[1]], [linear[0]]], "what the groups before left uneven counts as well"


def test_a_probe_of_many_classes_is_more_work() -> None:
    assert 2 < probe_load(2) < probe_load(77) < 100
