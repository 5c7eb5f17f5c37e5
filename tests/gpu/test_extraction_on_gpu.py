"""Extraction on a GPU in batches of several parts: what one takes is measured, and features are those of parts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from heads.features import FeatureStore
from heads.model.model import build_backbone
from heads.phases import Tap
from heads.trunks import extraction, joining
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.joining import NUM_COPIES, PartCost, choose_number
from heads.trunks.stored import open_views
from tests.gpu.nearness import assert_near
from tests.heads.stored_training import KIND, NUM_TRAIN, datasets, pictures, trunks_of, variant_of

__all__ = ["pictures"]

# Loader processes are forked beside CUDA's threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork")

GPU = torch.device("cuda")


def test_parts_are_joined_as_memory_allows_and_features_are_those_of_parts_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(KIND, precision="fp32")
    images = datasets(pictures, variant)[0]
    stages = build_backbone(variant, None).eval().to(GPU, memory_format=torch.channels_last)
    taps, numbers, found = [Tap(3, "map"), Tap(5, "pooled")], list[int](), []
    monkeypatch.setitem(extraction.BATCH_SIZES, "cuda", 1)

    def choose(*asked: Any) -> int:
        numbers.append(choose_number(*asked))
        return numbers[-1]

    monkeypatch.setattr(extraction, "choose_number", choose)
    # Of these pictures four fit a quarter of any GPU's memory, and none fits nothing of it.
    for name, saved, share in (("alone", 0.0, 0.25), ("joined", 1e6, 0.25), ("no room", 1e6, 0.0)):
        monkeypatch.setattr(joining, "MIN_BATCHES", 1)
        monkeypatch.setattr(joining, "SAVED_SHARE", saved)
        monkeypatch.setattr(joining, "FREE_SHARE", share)
        store, trunk = FeatureStore(tmp_path / name), trunks_of(variant, GPU)[0]
        wanted = [ExtractionRequest(images, 0, taps)]
        assert extract(lambda: stages, trunk, wanted, store, device=GPU, precision="fp32") == NUM_TRAIN
        (view,) = open_views(store, [trunk], taps, images.digests, torch.device("cpu"), shuffled=False)
        found.append(view[torch.arange(NUM_TRAIN)])
    assert numbers == [1, 4, 1]
    for features in found[1:]:
        for tap, rows in features.items():
            gap = float((rows - found[0][tap]).norm() / found[0][tap].norm())
            assert_near(f"features of joined parts, {tap}", gap, 1e-2)


def test_what_a_part_takes_of_the_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(samples: torch.Tensor) -> torch.Tensor:
        return samples.new_ones(2**30, dtype=torch.uint8)

    told = list[PartCost]()
    monkeypatch.setattr(joining, "number_that_pays", lambda cost, free, _: told.append(cost) or int(free > cost.num_bytes))
    example = torch.zeros(2, 2**20, device=GPU)
    assert choose_number(run, example, 10**6) == 1
    assert told[0].num_bytes == pytest.approx(2**30 + NUM_COPIES * example.nbytes, rel=0.01)
    assert min(told[0].seconds, told[0].first_seconds) > 0
