"""What a scoring job makes of rows: the measures of validation, whatever classes either side knows."""

import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from flows.records import TrainedVariant, TrainResult
from flows.stages.scoring import serving_costs
from heads.spec import Head, Variant
from heads.tasks.rows import Scored
from heads.tasks.table import TASKS


def row(number: int, truth: str, **probabilities: float) -> Scored:
    predicted = max(probabilities, key=lambda name: probabilities[name])
    return Scored(f"{number}", "kind", truth, predicted, probabilities[predicted], probabilities)


def test_holdout_measures_are_those_of_validation() -> None:
    rows = [row(0, "a", a=0.9, b=0.1), row(1, "b", a=0.6, b=0.4), row(2, "b", a=0.2, b=0.8), row(3, "a", a=0.7, b=0.3)]
    found = TASKS["classification"].measure_rows(rows, ["a", "b"], None)
    # By hand: both bs score higher as b than both as; squares of 0.1, 0.6, 0.2 and 0.3.
    assert found["auroc"] == found["average_precision"] == 1
    assert found["accuracy"] == found["f1_micro"] == 0.75
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.09) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert "top5" not in found


def test_a_class_that_the_bundle_does_not_know_counts_as_never_predicted() -> None:
    rows = [row(0, "a", a=0.9, b=0.1), row(1, "b", a=0.3, b=0.7), row(2, "new", a=0.8, b=0.2)]
    found = TASKS["classification"].measure_rows(rows, ["a", "b"], None)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["recall_macro"] == pytest.approx(2 / 3)
    # a: 1 and 0.5 of its two negatives; b: both; new: scored alike everywhere.
    assert found["auroc"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["brier"] == pytest.approx((0.02 + 0.18 + 0.64 + 0.04 + 1) / 3)


def test_label_sets_are_told_at_the_bundles_thresholds_and_an_unknown_label_never() -> None:
    chances = [{"a": 0.9, "b": 0.3}, {"a": 0.2, "b": 0.35}, {"a": 0.6, "b": 0.1}]
    rows = [
        Scored(f"{i}", "kind", truth, "", 0, found)
        for i, (truth, found) in enumerate(zip(("a|b", "b|new", ""), chances, strict=True))
    ]
    found = TASKS["multilabel"].measure_rows(rows, ["a", "b"], [0.5, 0.25])
    truths, told = [[1, 1, 0], [0, 1, 1], [0, 0, 0]], [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert found["f1_macro"] == pytest.approx(f1_score(truths, told, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(1 / 3)
    expected = average_precision_score(truths, [[0.9, 0.3, 0], [0.2, 0.35, 0], [0.6, 0.1, 0]], average="macro")
    assert found["average_precision"] == pytest.approx(expected)


def test_masks_are_measured_over_all_pixels_together_and_class_by_class() -> None:
    rows = [
        Scored("0", "mask", "0.png", "", 0.5, {}, (("0", "0", 30), ("0", "5", 10), ("5", "5", 20))),
        Scored("1", "mask", "1.png", "", 0.5, {}, (("5", "0", 4), ("12", "12", 6), ("12", "3", 2))),
    ]
    flat = [(a, b) for row in rows for a, b, n in row.pixels for _ in range(n)]
    truths, told = map(list, zip(*flat, strict=True))
    found = TASKS["segmentation"].measure_rows(rows, ["0", "5"], None)
    assert found["miou"] == pytest.approx(jaccard_score(truths, told, average="macro", zero_division=0))
    assert found["dice"] == pytest.approx(f1_score(truths, told, average="macro", zero_division=0))
    assert found["pixel_accuracy"] == pytest.approx(56 / 72)
    assert found["iou_5"] == pytest.approx(20 / 34)


def test_variants_cost_what_a_sample_costs_on_its_way_through_their_backbone() -> None:
    made = [
        TrainedVariant(name, Variant(backbone=name, heads=(Head(target="kind"),)), False, {}, 1, 1, 1, 1.0)
        for name in ("resnet18", "mobilenet_v2")
    ]
    costs = serving_costs(TrainResult(tuple(made), 0, 0.0, run_id="run"))
    # As published by torchvision, in billions of multiply-adds of an image of 224 pixels.
    assert costs["resnet18"] == pytest.approx(1.814e9, rel=0.01)
    assert costs["mobilenet_v2"] == pytest.approx(0.301e9, rel=0.01)
