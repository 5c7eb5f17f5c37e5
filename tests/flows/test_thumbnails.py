"""Thumbnails: stored once an image, and the copy of a picture is among the nearest where all pictures are alike."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.job.holdout import thumbnails
from flows.job.holdout.thumbnails import TAP, open_thumbnails, store_thumbnails
from flows.records import DataVersion, Sample
from heads.data.decoding import decode
from heads.data.near_duplicates.thumbnails import SIDE_PX, alikeness, thumbnail_of, windows_in
from heads.errors import ImageError
from heads.features import FeatureStore, neighbours
from tests.flows.test_leaks import ALTERED, photographs, real

CPU = torch.device("cpu")


@real
@pytest.mark.parametrize(("name", "step"), [("sign_digits", 5), ("hymenoptera", 2)])
def test_the_original_is_among_the_nearest_of_each_altered_copy(name: str, step: int) -> None:
    images = [decode(file) for file in photographs(name, step)]
    windows = windows_in(torch.stack([thumbnail_of(image) for image in images]).float())
    for alter in ALTERED.values():
        copies = torch.stack([thumbnail_of(alter(image)) for image in images[::40]]).float()
        nearest = alikeness(windows_in(copies), windows).topk(3).indices
        assert all(40 * number in row for number, row in enumerate(nearest.tolist()))


def test_a_picture_is_as_like_another_as_its_best_window_is_to_the_whole_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    version, store = version_of(tmp_path, 30), FeatureStore(tmp_path / "features")
    store_thumbnails(store, version, version.samples, CPU)
    some, others = (open_thumbnails(store, samples) for samples in (version.samples[:10], version.samples[10:]))
    found, places = neighbours.nearest(some, others, TAP, 20, windows_in, alikeness)
    windows = windows_in(store_of(store, version)).double().numpy()
    for number, (row, at) in enumerate(zip(found.tolist(), places.tolist(), strict=True)):
        one = windows[number]
        expected = [
            max(*(np.corrcoef(one[0], part)[0, 1] for part in other), *(np.corrcoef(part, other[0])[0, 1] for part in one))
            for other in windows[10:]
        ]
        np.testing.assert_allclose(row, np.array(expected)[at], atol=1e-5)
        assert row == sorted(row, reverse=True)


def test_an_image_is_read_for_its_thumbnail_once_also_if_a_reading_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "BATCH", 4)
    monkeypatch.setattr(thumbnails, "SHARD", 8)
    version, store = version_of(tmp_path, 22), FeatureStore(tmp_path / "features")
    whole = (tmp_path / "17.png").read_bytes()
    (tmp_path / "17.png").write_bytes(broken := b"no picture")
    damaged = replace(version.samples[17], digest=hashlib.md5(broken).hexdigest())
    samples = (*version.samples[:17], damaged, *version.samples[18:])
    with pytest.raises(ImageError, match=r"17\.png"):
        store_thumbnails(store, version, samples, CPU)
    (tmp_path / "17.png").write_bytes(whole)
    assert store_thumbnails(FeatureStore(tmp_path / "features"), version, version.samples[:20], CPU) == 4
    assert store_thumbnails(FeatureStore(tmp_path / "features"), version, version.samples, CPU) == 2
    assert store_thumbnails(store, version, version.samples, CPU) == 0
    for row, sample in zip(store_of(store, version), version.samples, strict=True):
        assert torch.equal(row, thumbnail_of(decode(tmp_path / sample.file)).float())


def test_greys_of_any_picture_fit_a_thumbnail() -> None:
    white = thumbnail_of(Image.new("RGB", (7, 300), "white"))
    assert (white.shape, white.dtype) == ((SIDE_PX, SIDE_PX), torch.float16)
    assert (white == 255).all()


def version_of(folder: Path, num: int) -> DataVersion:
    random, samples = np.random.default_rng(0), []
    for number in range(num):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        digest = hashlib.md5((folder / f"{number}.png").read_bytes()).hexdigest()
        samples.append(Sample(digest, f"{number}.png", "train", {"label": "a"}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def store_of(store: FeatureStore, version: DataVersion) -> torch.Tensor:
    return open_thumbnails(store, version.samples)[torch.arange(len(version.samples))][TAP].float()
