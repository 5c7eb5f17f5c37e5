"""Parts of a pass that make one batch: how many, by the memory that one takes, and that features stay whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heads.features import FeatureStore
from heads.phases import Tap
from heads.trunks import extraction
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.joining import MIN_JOINED_BATCHES, choose_number, joined, number_that_fits
from heads.trunks.stored import open_views
from tests.heads.moved_norms import stages_with_norms
from tests.heads.stored_training import CPU, KIND, NUM_TRAIN, datasets, pictures, trunks_of, variant_of

__all__ = ["pictures"]

GB = 10**9


@pytest.mark.parametrize(
    ("part_gb", "free_gb", "num_batches", "number"),
    [
        (1, 100, 4.0, 4),
        (6.25, 100, 4.0, 4),
        (6.5, 100, 4.0, 2),
        (12.5, 100, 4.0, 2),
        (13, 100, 4.0, 1),
        (90, 100, 4.0, 1),
        (1, 100, 3.9, 2),
        (1, 100, 2.0, 2),
        (1, 100, 1.9, 1),
        (1, 0, 9.0, 1),
    ],
)
def test_parts_are_joined_while_they_fit_a_quarter_of_free_memory_and_make_batches_enough(
    part_gb: float, free_gb: int, num_batches: float, number: int
) -> None:
    assert number_that_fits(int(part_gb * GB), free_gb * GB, int(num_batches * MIN_JOINED_BATCHES)) == number


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
    images, stages, taps = datasets(pictures, variant)[0], stages_with_norms(variant.backbone), [Tap(3, "map"), Tap(5, "pooled")]
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
