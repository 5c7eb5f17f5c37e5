"""What a scoring job makes of rows: the measures of validation, whatever classes either side knows."""

import pytest

from flows.job.scoring import Row, _measure


def row(number: int, truth: str, **probabilities: float) -> Row:
    predicted = max(probabilities, key=lambda name: probabilities[name])
    return (f"{number}", "kind", truth, predicted, probabilities[predicted], probabilities)


def test_holdout_measures_are_those_of_validation() -> None:
    rows = [row(0, "a", a=0.9, b=0.1), row(1, "b", a=0.6, b=0.4), row(2, "b", a=0.2, b=0.8), row(3, "a", a=0.7, b=0.3)]
    found = _measure(rows)
    # By hand: both bs score higher as b than both as; squares of 0.1, 0.6, 0.2 and 0.3.
    assert found["kind/auroc"] == found["kind/average_precision"] == 1
    assert found["kind/accuracy"] == found["kind/f1_micro"] == 0.75
    assert found["kind/brier"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.09) / 4)
    assert found["kind/ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert "kind/top5" not in found


def test_a_class_that_the_bundle_does_not_know_counts_as_never_predicted() -> None:
    rows = [row(0, "a", a=0.9, b=0.1), row(1, "b", a=0.3, b=0.7), row(2, "new", a=0.8, b=0.2)]
    found = _measure(rows)
    assert found["kind/accuracy"] == pytest.approx(2 / 3)
    assert found["kind/recall_macro"] == pytest.approx(2 / 3)
    # a: 1 and 0.5 of its two negatives; b: both; new: scored alike everywhere.
    assert found["kind/auroc"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["kind/brier"] == pytest.approx((0.02 + 0.18 + 0.64 + 0.04 + 1) / 3)
