"""The feature store as a job fills it: one pass a trunk, and whom its work is for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import job
from flows.errors import AskedWrongly
from flows.job import trunks
from flows.job.costs import PassCost
from flows.job.datasets import Splits
from flows.records import DataVersion, Sample, Weights, Work, Workers
from heads.features import FeatureStore, Key
from heads.spec import Fit, Head, Variant
from heads.trunks.pricing import forward_multiply_adds
from heads.trunks.trunk import trunk_of
from tests.heads import vectors

NUM_TRAIN, NUM_VAL, SIZE_PX = 5, 3, 32


def work_of(design: str, views: int) -> Work:
    fit = Fit(image_size_px=SIZE_PX, augment="light", views=views)
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label", design=design),), fit=fit)
    return Work(f"{design} {views}", variant, Weights("none"))


@pytest.fixture
def order(tmp_path: Path) -> job.Job:
    splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
    rows = []
    for number, split in enumerate(splits):
        content = bytes([number])
        (tmp_path / f"{number}.png").write_bytes(content)
        rows.append(Sample(hashlib.md5(content).hexdigest(), f"{number}.png", split, {"label": "ab"[number % 2]}))
    version = DataVersion("d" * 32, "r" * 40, tuple(rows), tmp_path, ())
    works = (work_of("linear", 1), work_of("mlp", 3), work_of("attention", 2))
    return job.Job("train", "k", "tiny", tmp_path, version, {"label": ("a", "b")}, Workers(count=1), works=works)


@pytest.fixture
def filled(order: job.Job, monkeypatch: pytest.MonkeyPatch) -> tuple[list[PassCost], list[dict[tuple[int, int], set[str]]]]:
    """What is announced, and by pass what is extracted: the names of the taps by (number of images, view)."""
    announced: list[PassCost] = []
    extracted: list[dict[tuple[int, int], set[str]]] = []

    def extract(build: Any, trunk: Any, wanted: Any, *_: Any, **__: Any) -> int:
        extracted.append({(len(each.dataset), each.view): {tap.name for tap in each.taps} for each in wanted})
        return 0

    monkeypatch.setattr(trunks, "extract", extract)
    monkeypatch.setattr(trunks.ExtractionCosts, "announce", lambda self, pass_costs: announced.extend(pass_costs))
    trunks.JobFeatures(order, Splits(order), torch.device("cpu")).fill(order.works)
    return announced, extracted


def test_splits_and_views_of_one_trunk_are_one_pass(filled: Any) -> None:
    both = {"3:map", "3:pooled"}
    plain = {(NUM_TRAIN, 0): both, (NUM_VAL, 0): both}
    assert filled[1] == [plain, {(NUM_TRAIN, 1): both, (NUM_TRAIN, 2): {"3:pooled"}}]


def test_a_pass_costs_what_is_lacking_and_is_shared_by_who_reads_of_it(filled: Any) -> None:
    an_image = forward_multiply_adds("squeezenet1_1", SIZE_PX, 4)
    plain, varied = filled[0]
    assert (plain.num_samples, plain.flops) == (NUM_TRAIN + NUM_VAL, (NUM_TRAIN + NUM_VAL) * an_image)
    assert plain.keys == ("linear 1", "mlp 3", "attention 2")
    # The second view is for both that have it, the third for one.
    assert (varied.num_samples, varied.flops) == (2 * NUM_TRAIN, 2 * NUM_TRAIN * an_image)
    assert varied.keys == ("mlp 3", "attention 2")


def test_an_image_is_looked_for_when_it_is_read_and_not_before(order: job.Job) -> None:
    (order.version.data / "0.png").unlink()
    images = Splits(order).open("train", order.works[0].variant)
    assert len(images) == NUM_TRAIN
    assert images.digests[0] == order.version.samples[0].digest
    assert [path.name for path in images.paths[1:]] == [f"{number}.png" for number in range(1, NUM_TRAIN)]
    with pytest.raises(AskedWrongly, match=r"0\.png .* is neither in the DVC cache"):
        images.view(0, 0)


def test_a_job_of_another_kind_of_samples_fills_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors.add_vectors(monkeypatch)
    files = vectors.write_vectors(tmp_path, NUM_TRAIN + NUM_VAL)
    splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
    samples = tuple(
        Sample(digest, file.name, split, {"label": "ab"[number % 2]})
        for number, (file, digest, split) in enumerate(zip(files, vectors.digests_of(files), splits, strict=True))
    )
    version = DataVersion("d" * 32, "r" * 40, samples, tmp_path, ())
    work = Work("vector", Variant(backbone=vectors.BACKBONE, heads=(Head(target="label"),), freeze="all"), Weights("none"))
    order = job.Job("train", "k", "tiny", tmp_path, version, {"label": ("a", "b")}, Workers(count=1), works=(work,))
    features = trunks.JobFeatures(order, Splits(order), torch.device("cpu"))
    features.fill(order.works)
    train_set, val_set = (features.splits.open(split, work.variant) for split in ("train", "val"))
    (loaders,) = features.loaders(work, train_set, val_set).values()
    assert sum(int(batch.weights.sum()) for batch in loaders.val) == NUM_VAL
    told = features.store.description(*features.store.trunks())
    assert told == {"backbone": "perceptron", "weights": "random 0", "by": 10.0, "dtype": "float32", "views": "plain"}


def test_a_sample_that_lacks_one_tap_of_several_is_forwarded(order: job.Job, request: pytest.FixtureRequest) -> None:
    store = FeatureStore(order.features_root)
    trunk = trunk_of(order.works[0].variant, "none", torch.device("cpu"))
    keys = [Key(sample.digest) for sample in order.version.samples]
    store.trunk(trunk.id).write(keys, {"3:pooled": torch.zeros(len(keys), 512, 1, 1)})
    plain, _ = request.getfixturevalue("filled")[0]
    assert plain.num_samples == len(keys)
