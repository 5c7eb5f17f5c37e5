"""Label sets: losses as torch's and torchvision's, measures as scikit-learn's, thresholds as a search over all of them finds."""

import math
from itertools import pairwise
from typing import Literal

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
)
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from heads.backbones import BACKBONES
from heads.catalogue import HEAD_DESIGNS
from heads.data.labels import MISSING_LABEL
from heads.spec import Fit, Head
from heads.tasks import multilabel
from heads.tasks.table import TASKS
from heads.tasks.thresholds import MIN_POSITIVES, decide, tune_thresholds

CPU = torch.device("cpu")


def drawn_batch(seed: int = 0, num_samples: int = 30, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_samples, num_classes, generator=generator) * 3
    return logits, (torch.rand(num_samples, num_classes, generator=generator) < 0.3).long()


def draw_scores(seed: int, num_samples: int, num_classes: int, coarse: bool) -> Tensor:
    """Rows of truths and probabilities; coarse ones are full of ties, zeros and certainties. Some labels may never occur."""
    random = np.random.default_rng(seed)
    probabilities = random.integers(0, 5, (num_samples, num_classes)) / 4 if coarse else random.random((num_samples, num_classes))
    truths = random.random((num_samples, num_classes)) < random.choice([0, 0.2, 0.5, 1], num_classes)
    return torch.from_numpy(np.concatenate([truths, probabilities], axis=1)).float()


def test_the_task_is_served_by_this_room() -> None:
    assert TASKS["multilabel"] is multilabel


@pytest.mark.parametrize("design", HEAD_DESIGNS["multilabel"])
@pytest.mark.parametrize(("backbone", "shape"), [("resnet18", (1, 512, 1, 1)), ("vit_b_32", (2, 5, 768))])
def test_every_design_gives_a_logit_a_label_from_the_last_stage(design: str, backbone: str, shape: tuple[int, ...]) -> None:
    head = Head(target="tags", task="multilabel", design=design)
    assert multilabel.taps(design, BACKBONES[backbone]) == (4,)
    net = multilabel.build_head(head, Fit(), BACKBONES[backbone], 7).train()
    logits = net(torch.randn(shape))
    assert logits.shape == (shape[0], 7)
    multilabel.PLAIN.losses(logits, torch.ones(shape[0], 7)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_loss_is_binary_cross_entropy_over_the_labels(dtype: torch.dtype) -> None:
    logits, labels = drawn_batch()
    logits = logits.to(dtype)
    expected = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
    torch.testing.assert_close(multilabel.PLAIN.losses(logits, labels), expected)


def test_weighted_and_smoothed_the_loss_is_torchs_own() -> None:
    logits, labels = drawn_batch(1)
    counts = labels.sum(dim=0)
    criterion = multilabel.criterion_of(Fit(class_weights="balanced", label_smoothing=0.2), counts, 30, CPU)
    weights = (30 - counts) / counts
    smoothed = labels * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights, reduction="none").mean(dim=1)
    torch.testing.assert_close(criterion.losses(logits, labels), expected)


def test_weights_of_labels_never_there_are_one_and_of_rare_and_common_ones_bounded() -> None:
    counts = torch.tensor([0, 1, 500, 1000])
    weights = multilabel.criterion_of(Fit(class_weights="balanced"), counts, 1000, CPU).positive_weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([1, 100, 1, 0.01])
    assert multilabel.criterion_of(Fit(), counts, 1000, CPU).positive_weights is None


def test_the_focal_loss_is_torchvisions() -> None:
    logits, labels = drawn_batch(2)
    criterion = multilabel.criterion_of(Fit(loss="focal"), labels.sum(dim=0), 30, CPU)
    expected = sigmoid_focal_loss(logits, labels.float(), alpha=-1, gamma=2).mean(dim=1)
    torch.testing.assert_close(criterion.losses(logits, labels), expected)


@pytest.mark.parametrize("loss", ["dice", "cross_entropy_dice"])
def test_losses_of_masks_mean_plain_cross_entropy_here(loss: str) -> None:
    logits, labels = drawn_batch(3)
    criterion = multilabel.criterion_of(Fit(loss=loss), labels.sum(dim=0), 30, CPU)
    assert torch.equal(criterion.losses(logits, labels), multilabel.PLAIN.losses(logits, labels))


@pytest.mark.parametrize("fit", [Fit(), Fit(loss="focal", label_smoothing=0.1, class_weights="balanced")])
def test_missing_labels_lose_nothing_and_nothing_is_infinite(fit: Fit) -> None:
    logits = torch.tensor([[300.0, -300.0], [-300.0, 300.0], [1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    labels = torch.tensor([[1, 0], [1, 0], [MISSING_LABEL, MISSING_LABEL], [0, 1]])
    losses = multilabel.criterion_of(fit, torch.tensor([2, 1]), 3, CPU).losses(logits, labels)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert losses[2] == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[3] != 0).all()


def test_counts_and_scores_leave_out_padding_and_missing_labels() -> None:
    logits, labels = drawn_batch(4)
    weights = torch.ones(30)
    labels[3], weights[7] = MISSING_LABEL, 0
    kept = torch.tensor([index for index in range(30) if index not in (3, 7)])
    counts = multilabel.count(logits, labels, weights)
    assert counts.dtype == torch.float64
    assert torch.equal(counts, multilabel.count(logits[kept], labels[kept], torch.ones(28)))
    halves = multilabel.count(logits[:11], labels[:11], weights[:11]) + multilabel.count(logits[11:], labels[11:], weights[11:])
    assert torch.equal(counts, halves)
    rows = multilabel.score(logits, labels, weights)
    assert rows.dtype == torch.float32
    assert (rows[:, 0] == MISSING_LABEL).nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(rows[kept, :4], labels[kept].float())
    torch.testing.assert_close(rows[:, 4:], logits.sigmoid())


def expected_counted(truths: np.ndarray, told: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(truths, told),
        "f1_macro": f1_score(truths, told, average="macro", zero_division=0),
        "f1_micro": f1_score(truths, told, average="micro", zero_division=0),
        "f1_weighted": f1_score(truths, told, average="weighted", zero_division=0),
        "precision_macro": precision_score(truths, told, average="macro", zero_division=0),
        "recall_macro": recall_score(truths, told, average="macro", zero_division=0),
    }


@given(st.integers(0, 2**31 - 1), st.integers(1, 30), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_measures_of_counts_equal_those_of_scikit_learn_at_even_odds(seed: int, num_samples: int, num_classes: int) -> None:
    logits, labels = drawn_batch(seed, num_samples, num_classes)
    found = multilabel.measures(multilabel.count(logits, labels, torch.ones(num_samples)), None)
    assert found == pytest.approx(expected_counted(labels.numpy(), (logits.sigmoid() >= 0.5).numpy()), abs=1e-6)


def calibration_error(probabilities: np.ndarray, truths: np.ndarray) -> float:
    """As torchmetrics bins it, by a plain loop over every label of every sample."""
    gaps: dict[int, float] = {}
    edges = torch.linspace(0, 1, 16, dtype=torch.float64).tolist()
    for chance, truth in zip(probabilities.flatten(), truths.flatten(), strict=True):
        confidence, right = max(chance, 1 - chance), (chance >= 0.5) == bool(truth)
        number = max(index for index, edge in enumerate(edges) if edge <= confidence)
        gaps[number] = gaps.get(number, 0.0) + right - confidence
    return sum(map(abs, gaps.values())) / truths.size


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("design", ["linear", "mlp", "attention"])
def test_a_new_head_begins_where_biases_alone_lower_no_loss(design: str, weights: Literal["none", "balanced"]) -> None:
    chances = torch.tensor([0.005, 0.02, 0.1, 0.5, 0.9])
    labels = (torch.rand(4000, 5, generator=torch.Generator().manual_seed(1)) < chances).long()
    fit, counts = Fit(class_weights=weights), labels.sum(dim=0)
    net = multilabel.build_head(Head(target="tags", task="multilabel", design=design), fit, BACKBONES["resnet18"], 5).eval()
    multilabel.start_head(net, fit, counts, 4000)
    logits = net(torch.randn(4000, 512, 1, 1))
    slopes = torch.autograd.grad(multilabel.criterion_of(fit, counts, 4000, CPU).losses(logits, labels).mean(), net[-1].bias)
    assert slopes[0].abs().max() < 1e-3
    multilabel.start_head(net, fit, torch.zeros(5, dtype=torch.int64), 0)
    assert net[-1].bias.tolist() == [0.0] * 5, "nothing is known"


@given(st.integers(0, 2**31 - 1), st.integers(1, 30), st.integers(2, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_measures_of_scores_equal_those_of_scikit_learn(seed: int, num_samples: int, num_classes: int, coarse: bool) -> None:
    scores = draw_scores(seed, num_samples, num_classes, coarse)
    truths, probabilities = (half.double().numpy() for half in scores.chunk(2, dim=1))
    thresholds = tune_thresholds(scores)
    table = list(zip(truths.T, probabilities.T, strict=True))
    expected = expected_counted(truths, probabilities >= thresholds.double().numpy()) | {
        "ece": calibration_error(probabilities, truths),
        "brier": np.mean([brier_score_loss(truth, chances, labels=[0, 1]) for truth, chances in table]),
    }
    if areas := [roc_auc_score(truth, chances) for truth, chances in table if 0 < truth.sum() < num_samples]:
        expected["auroc"] = np.mean(areas)
    if precisions := [average_precision_score(truth, chances) for truth, chances in table if truth.any()]:
        expected["average_precision"] = np.mean(precisions)
    assert multilabel.measures(torch.zeros(4 * num_classes + 1), scores) == pytest.approx(expected, abs=1e-6)


def test_with_every_label_in_truth_the_macro_values_are_scikit_learns_own() -> None:
    scores = draw_scores(5, 60, 6, coarse=True)
    scores[:2, :6] = torch.tensor([[0.0], [1.0]])
    truths, probabilities = (half.double().numpy() for half in scores.chunk(2, dim=1))
    found = multilabel.measures_at(scores, torch.full((6,), 0.5))
    assert found["auroc"] == pytest.approx(roc_auc_score(truths, probabilities, average="macro"), abs=1e-9)
    assert found["average_precision"] == pytest.approx(average_precision_score(truths, probabilities, average="macro"), abs=1e-9)
    assert found["f1_macro"] == pytest.approx(f1_score(truths, probabilities >= 0.5, average="macro"), abs=1e-9)


@given(st.integers(0, 2**31 - 1), st.integers(1, 20), st.integers(1, 4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_threshold_has_a_better_f1_than_the_tuned_one(seed: int, num_samples: int, num_classes: int, coarse: bool) -> None:
    scores = draw_scores(seed, num_samples, num_classes, coarse)
    truths, probabilities = scores.chunk(2, dim=1)
    tuned = tune_thresholds(scores)
    for truth, chances, threshold in zip(truths.T.numpy(), probabilities.T.double().numpy(), tuned.tolist(), strict=True):
        if truth.sum() < MIN_POSITIVES:
            assert threshold == 0.5, "nothing is learned from so few"
            continue
        edges = [0.0, *sorted(set(chances.tolist()))]
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        values = {middle: f1_score(truth, chances >= middle, zero_division=0) for middle in middles}
        best = max(values.values())
        assert f1_score(truth, chances >= threshold) == pytest.approx(best, abs=1e-12)
        assert abs(threshold - 0.5) == pytest.approx(min(abs(m - 0.5) for m, v in values.items() if v > best - 1e-12), abs=1e-6)


def test_a_threshold_lies_between_the_scores_it_parts_even_where_they_are_neighbours() -> None:
    chance = torch.tensor(0.7)
    below = torch.nextafter(chance, torch.tensor(0.0))
    scores = torch.tensor([[1.0, chance], *[[1.0, 0.9]] * 4, [0.0, below], [0.0, 0.1]])
    (threshold,) = tune_thresholds(scores).tolist()
    assert multilabel.thresholds(scores) == [threshold]
    # Kept as a number in text and read back.
    told = decide(scores[:, 1:], torch.tensor([float(repr(threshold))], dtype=torch.float64))
    assert told.flatten().tolist() == [True] * 5 + [False] * 2


def test_thresholds_of_no_samples_are_even_and_measures_not_a_number() -> None:
    scores = torch.zeros(0, 6)
    assert tune_thresholds(scores).tolist() == [0.5] * 3
    found = multilabel.measures(torch.zeros(13), scores)
    assert found.keys() == multilabel.measures(torch.zeros(13), None).keys()
    assert all(math.isnan(value) for value in found.values())
