"""Masks: losses as torch's and a plain loop's, measures as scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from torch import Tensor
from torch.nn import functional as F

from heads.data.labels import MISSING_LABEL
from heads.spec import Fit
from heads.tasks import segmentation

CPU = torch.device("cpu")


def drawn_masks(seed: int = 0, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits and labels of three images: some pixels without a label in the first, all of the second's."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, num_classes, 6, 5, generator=generator) * 2
    labels = torch.randint(0, num_classes, (3, 6, 5), generator=generator)
    labels[0, :2] = MISSING_LABEL
    labels[1] = MISSING_LABEL
    labels[2][labels[2] == 1] = 0
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_loss_is_each_images_own_mean_cross_entropy(dtype: torch.dtype) -> None:
    logits, labels = drawn_masks()
    logits = logits.to(dtype)
    each = [F.cross_entropy(logits[[n]].float(), labels[[n]], ignore_index=MISSING_LABEL) for n in (0, 2)]
    torch.testing.assert_close(segmentation.PLAIN.losses(logits, labels), torch.stack([each[0], torch.tensor(0.0), each[1]]))


def pixel_loss(fit: Fit, counts: list[int], probabilities: list[float], label: int) -> float:
    total = 0.0
    for number, p in enumerate(probabilities):
        share = (1 - fit.label_smoothing) * (number == label) + fit.label_smoothing / len(probabilities)
        weight = sum(counts) / (len(counts) * counts[number]) if fit.class_weights == "balanced" else 1.0
        total -= share * weight * math.log(p) * ((1 - p) ** 2 if fit.loss == "focal" else 1.0)
    return total


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "cross_entropy_dice"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_every_loss_is_what_a_plain_loop_gives(loss: str, smoothing: float, class_weights: str) -> None:
    logits, labels = drawn_masks(1)
    fit, counts = Fit(loss=loss, label_smoothing=smoothing, class_weights=class_weights), [10, 20, 30, 40]
    expected = segmentation.dice_losses(logits, labels) if loss == "cross_entropy_dice" else torch.zeros(3)
    for n, (rows, truths) in enumerate(zip(logits.softmax(dim=1).flatten(2).transpose(1, 2).tolist(), labels, strict=True)):
        pairs = [(row, label) for row, label in zip(rows, truths.flatten().tolist(), strict=True) if label != MISSING_LABEL]
        expected[n] += sum(pixel_loss(fit, counts, *pair) for pair in pairs) / max(1, len(pairs))
    criterion = segmentation.criterion_of(fit, torch.tensor(counts), 3, CPU)
    torch.testing.assert_close(criterion.losses(logits, labels), expected)


def test_balanced_weights_have_a_mean_of_one_over_the_pixels_of_train() -> None:
    criterion = segmentation.criterion_of(Fit(class_weights="balanced"), torch.tensor([100, 0, 300]), 7, CPU)
    assert criterion.of_pixels is not None
    assert criterion.of_pixels.class_weights is not None
    assert criterion.of_pixels.class_weights.tolist() == pytest.approx([2, 0, 2 / 3])


def test_the_dice_loss_is_what_a_plain_loop_gives() -> None:
    logits, labels = drawn_masks(2)
    expected = []
    for chances, truth in zip(logits.double().softmax(dim=1).numpy(), labels.numpy(), strict=True):
        labelled, coefficients = truth != MISSING_LABEL, []
        for number in set(truth[labelled].tolist()):
            p, q = chances[number][labelled], (truth == number)[labelled].astype(float)
            coefficients.append(2 * (p * q).sum() / ((p**2).sum() + (q**2).sum()))
        expected.append(1 - np.mean(coefficients) if coefficients else 0.0)
    found = segmentation.criterion_of(Fit(loss="dice"), torch.ones(4), 3, CPU).losses(logits, labels)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    sure = F.one_hot(labels[2:], 4).movedim(-1, 1) * 100.0
    assert segmentation.dice_losses(sure, labels[2:]).item() == pytest.approx(0, abs=1e-6)
    wrong = sure.roll(1, dims=1)
    assert segmentation.dice_losses(wrong, labels[2:]).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "cross_entropy_dice"])
def test_pixels_without_a_label_get_no_gradient_and_an_image_of_them_no_loss(loss: str) -> None:
    logits, labels = drawn_masks(3)
    logits[0, :, 4] *= 200
    logits.requires_grad_(True)
    criterion = segmentation.criterion_of(Fit(loss=loss, class_weights="balanced"), torch.tensor([5, 1, 0, 9]), 3, CPU)
    losses = criterion.losses(logits, labels)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert losses[1] == 0
    assert (losses[[0, 2]] > 0).all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad.movedim(1, -1)[labels == MISSING_LABEL].any()
    assert logits.grad[0].any()


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "cross_entropy_dice"])
def test_gradients_of_losses_are_those_of_finite_differences(loss: str) -> None:
    logits, labels = drawn_masks(4)
    criterion = segmentation.criterion_of(Fit(loss=loss, class_weights="balanced"), torch.tensor([5, 1, 2, 9]), 3, CPU)
    logits = logits.requires_grad_(True)
    criterion.losses(logits, labels).sum().backward()
    assert logits.grad is not None
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2 * direction
    with torch.no_grad():
        rise = (criterion.losses(logits + step, labels) - criterion.losses(logits - step, labels)).double().sum() / 2e-2
    assert rise.item() == pytest.approx((logits.grad * direction).double().sum().item(), rel=1e-2, abs=1e-4)


pixels = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(MISSING_LABEL, n - 1), st.integers(0, n - 1)), min_size=1, max_size=40).filter(
            lambda rows: any(label != MISSING_LABEL for label, _ in rows)
        ),
    )
)


@given(pixels)
@settings(max_examples=30, deadline=None)
def test_measures_equal_those_of_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    num_classes, rows = drawn
    labels, guesses = torch.tensor(rows).T.reshape(2, 1, 1, -1)
    counts = segmentation.count(F.one_hot(guesses, num_classes).movedim(-1, 1).float(), labels, torch.ones(1))
    kept = labels != MISSING_LABEL
    truths, told = labels[kept].numpy(), guesses[kept].numpy()
    present = sorted({*truths.tolist(), *told.tolist()})
    expected = {
        "miou": jaccard_score(truths, told, labels=present, average="macro", zero_division=0),
        "dice": f1_score(truths, told, labels=present, average="macro", zero_division=0),
        "pixel_accuracy": accuracy_score(truths, told),
    }
    assert segmentation.measures(counts, None) == pytest.approx(expected, abs=1e-6)
    scored = dict(zip(present, jaccard_score(truths, told, labels=present, average=None, zero_division=0), strict=True))
    ious = [scored.get(number, math.nan) for number in range(num_classes)]
    assert segmentation.class_ious(counts) == pytest.approx(ious, abs=1e-6, nan_ok=True)
    table = segmentation.confusion(counts)
    assert table == confusion_matrix(truths, told, labels=range(num_classes)).tolist()
    assert segmentation.class_ious(torch.tensor(table)) == pytest.approx(ious, abs=1e-6, nan_ok=True)


def test_padding_counts_for_nothing_and_counts_add_up() -> None:
    logits, labels = drawn_masks(5)
    whole = segmentation.count(logits, labels, torch.tensor([1.0, 1.0, 0.0]))
    assert whole.dtype == torch.float64
    assert whole.sum() == (labels[0] != MISSING_LABEL).sum()
    assert torch.equal(whole, segmentation.count(logits[:1], labels[:1], torch.ones(1)))
    every = segmentation.count(logits, labels, torch.ones(3))
    parts = [segmentation.count(logits[[n]], labels[[n]], torch.ones(1)) for n in range(3)]
    assert torch.equal(every, torch.stack(parts).sum(dim=0))


def test_measures_of_no_pixels_are_not_a_number_and_no_scores_are_kept() -> None:
    logits, labels = drawn_masks()
    assert all(math.isnan(value) for value in segmentation.measures(torch.zeros(16), None).values())
    assert segmentation.score(logits, labels, torch.ones(3)) is None
    torch.testing.assert_close(segmentation.activate(logits.half()).sum(dim=1), torch.ones(3, 6, 5))
