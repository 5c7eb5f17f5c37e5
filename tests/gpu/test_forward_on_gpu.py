"""Frozen stages on a GPU: folded they are as near to float32 as the given ones, and run if they are faster; large batches."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from heads.features import FeatureStore
from heads.model.precision import computing_dtype
from heads.phases import Tap
from heads.trunks import extraction, forward, joining
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.folding import fold
from heads.trunks.forward import MIN_BATCHES, Forward, run_stages
from heads.trunks.joining import NUM_COPIES, PartCost, choose_number
from heads.trunks.stored import open_views
from tests.gpu.nearness import assert_near
from tests.heads.moved_norms import features_of, gap, num_norms, stages_with_norms
from tests.heads.stored_training import KIND, NUM_TRAIN, datasets, pictures, trunks_of, variant_of

__all__ = ["pictures"]

# Loader processes are forked beside CUDA's threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork")

GPU = torch.device("cuda")
# Of the gap between the given stages and float32: what is folded is rounded otherwise, and less often.
OF_THE_GIVEN = 1.3
NETWORKS = ["resnet50", "resnext50_32x4d", "regnet_y_400mf", "densenet121", "inception_v3", "vgg11_bn", "mobilenet_v2"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folded_stages_are_as_near_to_float32_as_the_given_ones(name: str, precision: Any) -> None:
    stages = stages_with_norms(name)
    samples = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    exact = features_of(stages, samples, "fp32")
    stages, samples = stages.to(GPU, memory_format=torch.channels_last), samples.to(GPU, memory_format=torch.channels_last)
    folded = fold(stages, computing_dtype(GPU, precision))
    assert name == "mobilenet_v2" or num_norms(folded) < num_norms(stages)
    plain = features_of(stages, samples, precision)
    try:
        found = features_of(folded, samples, precision)
    except RuntimeError as error:
        pytest.skip(f"stages run as they are where cuDNN has no kernel for what is folded: {error}")
    for tap, features in found.items():
        assert features.dtype == plain[tap].dtype
        tolerance = OF_THE_GIVEN * gap(plain[tap].cpu(), exact[tap]) + 1e-5
        assert_near(f"folded, {name}, {precision}, {tap}", gap(features.cpu(), exact[tap]), tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_the_faster_of_the_given_and_the_folded_stages_is_replayed(
    name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "MIN_FOLDED_SECONDS", 0.0)
    stages = stages_with_norms(name).to(GPU, memory_format=torch.channels_last)
    taps, samples = (Tap(len(stages) - 1, "pooled"),), torch.randn(64, 3, 224, 224, device=GPU)
    samples = samples.to(memory_format=torch.channels_last)
    prepared = [perf_counter()]
    passes = []
    for folds in (False, False, True, True):
        passes.append(Forward(stages, taps, precision, MIN_BATCHES, samples, folds=folds))
        torch.cuda.synchronize()
        prepared.append(perf_counter())
    _, given, _, chosen = passes
    assert given._graph is not None
    assert chosen._graph is not None
    seconds = [min(graph.seconds() for _ in range(5)) for graph in (given._graph, chosen._graph)]
    first, again, folded, folded_again = (after - before for before, after in pairwise(prepared))
    sys.stdout.write(
        f"{name}, {precision}: {1e3 * seconds[0]:.2f} ms as given (captured in {first:.2f} s, then {again:.2f} s), "
        f"{1e3 * seconds[1]:.2f} ms as chosen (folded and captured in {folded:.2f} s, then {folded_again:.2f} s)\n"
    )
    assert seconds[1] < 1.05 * seconds[0]
    expected = run_stages(stages, taps, precision, samples)
    for forward_pass in passes:
        found = forward_pass(samples)
        torch.cuda.synchronize()
        for tap, rows in expected.items():
            # Two roundings of half precision through a deep network of random weights.
            assert_near(f"{name}, {precision}, {tap}", gap(found[tap], rows.cpu()), 0.3 if precision == "bf16" else 0.05)
        forward_pass.close()


def test_parts_are_joined_as_memory_allows_and_features_are_those_of_parts_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(KIND, precision="fp32")
    images, stages = (
        datasets(pictures, variant)[0],
        stages_with_norms(variant.backbone).to(GPU, memory_format=torch.channels_last),
    )
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
            assert_near(f"features of joined parts, {tap}", gap(rows, found[0][tap]), 1e-2)


def test_what_a_part_takes_of_the_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(samples: torch.Tensor) -> torch.Tensor:
        return samples.new_ones(2**30, dtype=torch.uint8)

    told = list[PartCost]()
    monkeypatch.setattr(joining, "number_that_pays", lambda cost, free, _: told.append(cost) or int(free > cost.num_bytes))
    example = torch.zeros(2, 2**20, device=GPU)
    assert choose_number(run, example, 10**6) == 1
    assert told[0].num_bytes == pytest.approx(2**30 + NUM_COPIES * example.nbytes, rel=0.01)
    assert 0 < told[0].seconds < told[0].first_seconds + 1
