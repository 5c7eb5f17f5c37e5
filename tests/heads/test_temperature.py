"""Temperatures: the best by an independent search, steady on few samples, and of no effect on what is answered."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from heads.tasks import classification, multilabel, segmentation
from heads.tasks.temperature import of_classes
from heads.tasks.thresholds import decide

Rows = NDArray[np.float64]


def drawn(random: np.random.Generator, num: int, num_classes: int, sharpness: float) -> tuple[Rows, NDArray[np.int64]]:
    """Logits that are too sharp by this factor, and classes drawn from what they should have been."""
    logits = random.normal(0, 2, (num, num_classes))
    truths = np.array([random.choice(num_classes, p=row) for row in softmax(logits, axis=1)])
    return logits * sharpness, truths


def scores_of(logits: Rows, truths: NDArray[np.int64]) -> torch.Tensor:
    """The rows that a validation keeps."""
    given = torch.tensor(logits, dtype=torch.float32)
    return classification.score(given, torch.tensor(truths), torch.ones(len(truths)))


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_the_temperature_is_the_one_that_scipy_finds(sharpness: float, num_classes: int) -> None:
    logits, truths = drawn(np.random.default_rng(0), 300, num_classes, sharpness)

    def loss(temperature: float) -> float:
        told = log_softmax(logits / temperature, axis=1)[np.arange(300), truths]
        return -float(told.sum() + norm.logpdf(math.log(temperature), 0, 0.5))

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    assert classification.temperatures(scores_of(logits, truths)[None])[0] == pytest.approx(best, rel=2e-4)
    assert of_classes(torch.tensor(logits)[None], torch.tensor(truths))[0] == pytest.approx(best, abs=6e-5)
    assert best == pytest.approx(sharpness, rel=0.3)


def test_labels_share_the_temperature_that_scipy_finds() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 1.5, (200, 3))
    truths = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    sharp = logits * 2.5

    def loss(temperature: float) -> float:
        told = np.where(truths, log_expit(sharp / temperature), log_expit(-sharp / temperature))
        return -float(told.sum() + norm.logpdf(math.log(temperature), 0, 0.5))

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    scores = multilabel.score(torch.tensor(sharp, dtype=torch.float32), torch.tensor(truths).float(), torch.ones(200))
    assert multilabel.temperatures(scores[None])[0] == pytest.approx(best, rel=2e-4)


def test_probabilities_hold_better_on_other_samples() -> None:
    random = np.random.default_rng(2)
    logits, truths = drawn(random, 1000, 5, 3.0)
    temperature = classification.temperatures(scores_of(logits[:500], truths[:500])[None])[0]
    assert temperature is not None
    errors, distances = [], []
    for divisor in (1.0, temperature):
        told = softmax(logits[500:] / divisor, axis=1)
        errors.append(float(multiclass_calibration_error(torch.tensor(told), torch.tensor(truths[500:]), 5, n_bins=15)))
        distances.append(brier_score_loss(truths[500:], told, labels=list(range(5))))
    assert errors[1] < 0.4 * errors[0]
    assert distances[1] < distances[0]


def test_a_validation_without_a_mistake_does_not_ask_for_certainty() -> None:
    # Without a prior each of these would be as small as it may.
    for num, least in [(1, 0.98), (10, 0.85), (100, 0.7), (1000, 0.5)]:
        truths = np.arange(num) % 3
        temperature = classification.temperatures(scores_of(5.0 * np.eye(3)[truths], truths)[None])[0]
        assert temperature is not None
        assert least < temperature < 1


def test_probabilities_of_0_and_1_have_a_temperature_and_no_rows_have_none() -> None:
    truths = np.arange(100) % 2
    sure = scores_of(np.array([[200.0, -200.0]] * 100), truths)
    assert classification.temperatures(sure[None])[0] == pytest.approx(10, abs=0.001)
    marks = torch.tensor(truths[:, None]).float()
    told = multilabel.temperatures(multilabel.score(torch.full((100, 1), 99.0), marks, torch.ones(100))[None])[0]
    assert told == pytest.approx(10, abs=0.001)
    for task in (classification, multilabel, segmentation):
        assert task.temperatures(torch.empty(1, 0, 4))[0] is None


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.7])
def test_no_temperature_changes_which_labels_are_told(temperature: float) -> None:
    random = np.random.default_rng(3)
    logits = torch.tensor(random.normal(0, 8, (400, 4)), dtype=torch.float32)
    there = torch.tensor(random.random((400, 4)) < 0.4)
    there[:, 3] = False
    scores = multilabel.score(logits, there.float(), torch.ones(400))
    tuned, moved = (torch.tensor(multilabel.thresholds(scores, t), dtype=torch.float64) for t in (1.0, temperature))
    assert torch.equal(decide(logits.sigmoid(), tuned), (logits / temperature).sigmoid().double() >= moved)
    assert moved[3] == 0.5, "a label that is never there keeps even odds"
