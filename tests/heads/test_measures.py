"""Each measure is scikit-learn's (the calibration error torchmetrics') on the same predictions, with ties and absent classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import Tensor

from heads.tasks import measures
from heads.tasks.measures import as_floats, from_counts, from_scores


def confusion_of(truths: list[int], guesses: list[int], num_classes: int) -> Tensor:
    table = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for truth, guess in zip(truths, guesses, strict=True):
        table[truth, guess] += 1
    return table


pairs = st.integers(2, 6).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=40))
)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_measures_of_counts_equal_those_of_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    num_classes, rows = drawn
    truths, guesses = map(list, zip(*rows, strict=True))
    found = from_counts(confusion_of(truths, guesses, num_classes))
    expected = {
        "accuracy": accuracy_score(truths, guesses),
        "f1_macro": f1_score(truths, guesses, average="macro", zero_division=0),
        "f1_micro": f1_score(truths, guesses, average="micro", zero_division=0),
        "f1_weighted": f1_score(truths, guesses, average="weighted", zero_division=0),
        "precision_macro": precision_score(truths, guesses, average="macro", zero_division=0),
        "recall_macro": recall_score(truths, guesses, average="macro", zero_division=0),
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_class_that_is_absent_from_truth_and_prediction_does_not_count() -> None:
    assert from_counts(confusion_of([0, 1], [0, 1], 5))["f1_macro"] == 1.0


def test_counts_of_no_samples_are_not_a_number_and_scores_of_none_tell_nothing() -> None:
    assert all(math.isnan(value) for value in from_counts(torch.zeros(3, 3)).values())
    assert from_scores(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == {}


def test_confusions_of_workers_add_up_to_the_measures_of_all() -> None:
    one, two = confusion_of([0, 1, 2], [0, 2, 2], 3), confusion_of([2, 2], [1, 2], 3)
    assert from_counts(one + two) == from_counts(confusion_of([0, 1, 2, 2, 2], [0, 2, 2, 1, 2], 3))


def draw_scores(seed: int, num_samples: int, num_classes: int, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and true classes; coarse ones are full of ties, zeros and certainties. Some classes may be absent."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(num_classes, 0.5), num_samples)
    probabilities = np.stack([random.multinomial(10, row) for row in shares]) / 10 if coarse else shares
    return probabilities, random.integers(0, random.integers(1, num_classes + 1), num_samples)


def calibration_error(probabilities: np.ndarray, truths: np.ndarray) -> float:
    """As torchmetrics' multiclass_calibration_error with n_bins=15, by a plain loop."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    edges = torch.linspace(0, 1, 16, dtype=torch.float64).tolist()
    for row, truth in zip(probabilities, truths, strict=True):
        confidence = row.max()
        number = max(index for index, edge in enumerate(edges) if edge <= confidence)
        bins.setdefault(number, []).append((confidence, row.argmax() == truth))
    gaps = [abs(sum(confidence - hit for confidence, hit in found)) for found in bins.values()]
    return float(sum(gaps)) / len(truths)


@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(2, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_measures_of_scores_equal_those_of_scikit_learn(seed: int, num_samples: int, num_classes: int, coarse: bool) -> None:
    probabilities, truths = draw_scores(seed, num_samples, num_classes, coarse)
    found = from_scores(torch.from_numpy(probabilities), torch.from_numpy(truths))
    classes = list(range(num_classes))
    table = [(truths == number, probabilities[:, number]) for number in classes]
    areas = [roc_auc_score(truth, scores) for truth, scores in table if 0 < truth.sum() < num_samples]
    precisions = [average_precision_score(truth, scores) for truth, scores in table if truth.any()]
    expected = {
        "average_precision": np.mean(precisions),
        "ece": calibration_error(probabilities, truths),
        "brier": brier_score_loss(truths, probabilities if num_classes > 2 else probabilities[:, 1], labels=classes),
    }
    if areas:
        expected["auroc"] = np.mean(areas)
    if num_classes > 5:
        expected["top5"] = top_k_accuracy_score(truths, probabilities, k=5, labels=classes)
    assert found == pytest.approx(expected, abs=1e-6)


def test_many_columns_are_ranked_a_few_at_a_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, truths = (torch.from_numpy(array) for array in draw_scores(2, 30, 7, coarse=True))
    whole = from_scores(probabilities, truths)
    monkeypatch.setattr(measures, "RANKED_AT_ONCE", 100)
    assert as_floats(from_scores(probabilities, truths)) == pytest.approx(as_floats(whole), abs=1e-12)


def test_with_every_class_in_truth_the_macro_values_are_scikit_learns_own() -> None:
    probabilities, _ = draw_scores(1, 60, 6, coarse=True)
    truths = np.arange(60) % 6
    found = from_scores(torch.from_numpy(probabilities), torch.from_numpy(truths))
    assert found["auroc"] == pytest.approx(roc_auc_score(truths, probabilities, multi_class="ovr", average="macro"), abs=1e-9)
    assert found["average_precision"] == pytest.approx(average_precision_score(truths, probabilities, average="macro"), abs=1e-9)
