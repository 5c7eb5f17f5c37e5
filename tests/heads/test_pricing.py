"""Features are stored where that is cheaper than computing them, and what training computes is counted as it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from heads.backbones import BACKBONES, count_costs
from heads.backbones.blank import build_skeleton
from heads.backbones.table import row_of
from heads.catalogue import BACKBONE_STAGES, IMAGE_BACKBONES, IMAGE_SIZES, TEXT_BACKBONES
from heads.model.model import Model, build_model
from heads.spec import Fit, Head, Variant
from heads.trunks.calibration import measure_rates
from heads.trunks.pricing import epoch_multiply_adds, forward_multiply_adds, price
from heads.trunks.trunk import POOLING_DESIGNS, choose_taps, stored_taps

SMALL = ("mobilenet_v2", "resnet18", "vit_b_32", "swin_t")


def default_size(backbone: str) -> int:
    """The side of the images that a backbone's published weights were trained on, in pixels."""
    source = BACKBONES[backbone].source
    assert source
    return source.images.image_size_px


def variant_of(backbone: str, freeze: str, size_px: int | None = None, design: str = "linear", **fit: Any) -> Variant:
    side = size_px or default_size(backbone)
    return Variant(
        backbone=backbone,
        heads=(Head(target="kind", design=design),),
        freeze=freeze,
        fit=Fit(**{"epochs": 12, "image_size_px": side, **fit}),
    )


def stored_cuts(backbone: str, size_px: int, precision: str = "auto") -> list[str]:
    cuts = BACKBONE_STAGES[backbone]
    return [cut for cut in cuts if stored_taps(variant_of(backbone, f"upto:{cut}", size_px, precision=precision))]


def test_one_odd_file_does_not_move_the_measured_time_of_a_sample(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(9)]
    for number, file in enumerate(files):
        side = 32 if number else 2000
        Image.frombytes("RGB", (side, side), random.Random(number).randbytes(side * side * 3)).save(file, compress_level=1)

    def sample_seconds(files: list[Path]) -> float:
        variant = variant_of("mobilenet_v2", "all", 32)
        return measure_rates(variant, None, files, device=torch.device("cpu"), num_threads=1, seconds=0.01).sample_seconds

    assert sample_seconds(files) < sample_seconds(files[:1]) / 5


@pytest.mark.parametrize("backbone", SMALL)
def test_a_wholly_frozen_backbone_pays_whatever_its_head_looks_at(backbone: str) -> None:
    for size_px in (64, 224):
        for design in (*POOLING_DESIGNS, "attention"):
            assert stored_taps(variant_of(backbone, "all", size_px, design))


@pytest.mark.parametrize("size_px", [64, 96, 224, 384])
def test_large_maps_of_little_arithmetic_are_computed_again(size_px: int) -> None:
    assert stored_cuts("mobilenet_v2", size_px) == list(BACKBONE_STAGES["mobilenet_v2"][2:])
    assert stored_cuts("squeezenet1_1", size_px) == list(BACKBONE_STAGES["squeezenet1_1"][1:])


def test_half_precision_halves_what_is_read() -> None:
    assert stored_cuts("mobilenet_v2", 224, "bf16") == list(BACKBONE_STAGES["mobilenet_v2"][1:])


def test_a_choice_is_told_in_words_with_its_figures() -> None:
    (kept,), (dropped,) = (choose_taps(variant_of("mobilenet_v2", f"upto:{cut}")).values() for cut in ("stage5", "stem"))
    assert kept.taps
    assert kept.reason == "frozen through stage5: 75 kB a sample, 0.5 ms to write and read, 23 ms to compute"
    assert not dropped.taps
    assert dropped.reason == "frozen through stem: 1,606 kB a sample, 11 ms to write and read, 3.1 ms to compute"


@pytest.mark.parametrize(
    ("freeze", "fit", "words"),
    [
        ("none", {}, "whole backbone"),
        ("adaptive", {}, "after they moved"),
        ("all", {"mixup": 0.2}, "mixup blends"),
        ("upto:stage5", {"cutmix": 1.0}, "cutmix blends"),
    ],
)
def test_what_needs_images_says_why(freeze: str, fit: dict[str, Any], words: str) -> None:
    choices = choose_taps(variant_of("mobilenet_v2", freeze, **fit))
    assert all(words in choice.reason and not choice.taps for choice in choices.values())


def test_of_a_gradual_thaw_the_phases_are_weighed_one_by_one() -> None:
    choices = choose_taps(variant_of("mobilenet_v2", "gradual"))
    stored = {phase.num_frozen_stages for phase, choice in choices.items() if choice.taps}
    assert stored == set(range(3, 10))
    assert {phase.num_frozen_stages for phase in choices} == set(range(10))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "squeezenet1_1", "swin_t"])
def test_costs_at_another_size_are_those_of_real_images(backbone: str) -> None:
    model = build(variant_of(backbone, "all", 64))
    assert count(model, torch.zeros(1, 3, 64, 64)) == forward_multiply_adds(backbone, 64)
    features: Any = torch.zeros(1, 3, 64, 64)
    for stage, cost in zip(model.backbone, count_costs(backbone, 64), strict=True):
        features = stage(features)
        assert tuple(features.shape[1:]) == cost.shape


@pytest.mark.parametrize("backbone", [*IMAGE_BACKBONES, "bert-2x64x2", *TEXT_BACKBONES[1:]])
def test_costs_are_those_that_torch_counts(backbone: str) -> None:
    is_image = backbone in IMAGE_SIZES
    size = IMAGE_SIZES[backbone].least if is_image else 9
    features = torch.zeros(1, 3, size, size, device="meta") if is_image else torch.ones(1, 9, dtype=torch.int64, device="meta")
    for stage, cost in zip(row_of(backbone).split(build_skeleton(backbone)), count_costs(backbone, size), strict=True):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = stage.to("meta").eval()(features)
        assert (tuple(features.shape[1:]), counter.get_total_flops() // 2) == (cost.shape, cost.multiply_adds)


def test_tokens_cost_by_their_number_and_by_its_square() -> None:
    width, tokens, patches = 768, 5, 4
    block = 12 * width**2 * tokens + 2 * tokens**2 * width
    assert forward_multiply_adds("vit_b_32", 64) == patches * 3 * 32**2 * width + 12 * block


def test_the_default_size_is_one_that_the_backbone_takes() -> None:
    for name in SMALL:
        assert IMAGE_SIZES[name].least <= default_size(name)


def test_an_epoch_costs_the_way_forward_and_what_is_trained_twice_as_much_on_the_way_back() -> None:
    variant = variant_of("mobilenet_v2", "upto:stage5", 64)
    model = build(variant)
    whole, prefix = forward_multiply_adds("mobilenet_v2", 64), forward_multiply_adds("mobilenet_v2", 64, 6)
    given = {5: model.forward_backbone(torch.zeros(2, 3, 64, 64)).get(5, torch.zeros(2, 96, 4, 4))}
    assert count(model, given) == 2 * (whole - prefix)
    assert epoch_multiply_adds(variant, 6, 10, 3, stored=True) == 10 * 3 * (whole - prefix) + 3 * (whole - prefix)
    assert epoch_multiply_adds(variant, 6, 10, 3) == 10 * (whole + 2 * (whole - prefix)) + 3 * whole
    assert epoch_multiply_adds(variant, 9, 10, 3, stored=True) == 0


def test_a_price_counts_pooled_vectors_maps_and_tokens() -> None:
    assert price("mobilenet_v2", 224, [(8, "pooled")]).num_bytes == 4 * 1280
    assert price("mobilenet_v2", 224, [(8, "map"), (8, "pooled")]).num_bytes == 4 * 1280 * (49 + 1)
    assert price("vit_b_32", 224, [(4, "pooled")], 2).num_bytes == 2 * 768
    assert price("vit_b_32", 224, [(4, "map")], 2).num_bytes == 2 * 768 * 50
    assert price("mobilenet_v2", 224, [(2, "map"), (5, "map")]).multiply_adds == forward_multiply_adds("mobilenet_v2", 224, 6)


def build(variant: Variant) -> Model:
    return build_model(variant, {"kind": ("a", "b")}, None).eval()


def count(model: Model, inputs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.forward_backbone(inputs)
    return counter.get_total_flops() // 2
