"""Parts of a pass that make one batch: how many, by the memory that one takes, and that features stay whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heads.features import FeatureStore
from heads.model.model import build_backbone
from heads.phases import Tap
from heads.trunks import extraction
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.joining import PartCost, choose_number, joined, number_that_pays
from heads.trunks.stored import open_views
from tests.heads.stored_training import CPU, KIND, NUM_TRAIN, datasets, pictures, trunks_of, variant_of

__all__ = ["pictures"]

GB = 10**9


@pytest.mark.parametrize(
    ("part_gb", "free_gb", "num_parts", "first_seconds", "number"),
    [
        (1, 100, 1000, 0.01, 4),
        (6.25, 100, 1000, 0.01, 4),
        (6.5, 100, 1000, 0.01, 2),
        (13, 100, 1000, 0.01, 1),
        (1, 0, 1000, 0.01, 1),
        # 200 parts of 10 ms take 80 ms less, as long as two larger passes of 40 ms.
        (1, 100, 200, 0.01, 4),
        (1, 100, 199, 0.01, 2),
        (1, 100, 99, 0.01, 1),
        # Kernels that took 9 s to build are worth it in a pass of minutes.
        (1, 100, 10_000, 9.01, 1),
        (1, 100, 30_000, 9.01, 4),
    ],
)
def test_parts_are_joined_if_they_fit_a_quarter_of_free_memory_and_save_more_than_it_takes(
    part_gb: float, free_gb: int, num_parts: int, first_seconds: float, number: int
) -> None:
    assert number_that_pays(PartCost(int(part_gb * GB), 0.01, first_seconds), free_gb * GB, num_parts) == number


def test_on_a_cpu_each_part_is_a_batch_and_nothing_is_run_to_find_out() -> None:
    assert [choose_number(pytest.fail, example, 10**6) for example in (None, torch.ones(1))] == [1, 1]


def test_parts_are_joined_in_order_and_the_rest_come_one_by_one() -> None:
    parts = [(torch.arange(3) + 3 * number, 3) for number in range(6)] + [(torch.tensor([18, 18, 18]), 1)]
    for number, sizes in ((1, [3] * 6 + [1]), (2, [6, 6, 6, 1]), (4, [12, 3, 3, 1]), (7, [19]), (8, [3] * 6 + [1])):
        batches = list(joined(iter(parts), number))
        assert [size for _, size in batches] == sizes
        assert torch.cat([samples[:size] for samples, size in batches]).tolist() == list(range(19))


def test_features_are_the_same_however_many_parts_make_a_batch(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(KIND)
    images, stages = datasets(pictures, variant)[0], build_backbone(variant, None).eval()
    taps = [Tap(3, "map"), Tap(5, "pooled")]
    wanted = [ExtractionRequest(images, 0, taps)]
    monkeypatch.setitem(extraction.BATCH_SIZES, "cpu", 3)
    sizes, found = list[int](), []
    stages[0].register_forward_hook(lambda _, samples, __: sizes.append(len(samples[0])))
    for number in (1, 2, 4):
        monkeypatch.setattr(extraction, "choose_number", lambda *_, number=number: number)
        store, (trunk, *_) = FeatureStore(tmp_path / str(number)), trunks_of(variant)
        assert extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32") == NUM_TRAIN
        (view,) = open_views(store, [trunk], taps, images.digests, CPU, shuffled=False)
        found.append(view[torch.arange(NUM_TRAIN)])
    assert sizes == [3] * 7 + [6, 6, 6, 3] + [12, 3, 3, 3]
    for features in found[1:]:
        for tap, rows in features.items():
            assert torch.allclose(rows, found[0][tap], atol=1e-5 * float(found[0][tap].abs().max()))
