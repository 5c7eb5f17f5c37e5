"""The logistic probe: its weights are scikit-learn's, its measures those of its answers, and missing labels count for nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, log_loss
from torch import Tensor, nn
from torch.nn import functional as F

from heads.catalogue import Task
from heads.errors import TrainingDiverged
from heads.model.model import Model, build_model
from heads.spec import Fit, Head, Variant
from heads.training.logistic import fit_logistic, logits_of
from heads.training.probe import PENALTIES, Block, FittedProbe, fit_probe

N, CHANNELS = 150, 512


def draw(seed: int, num_samples: int, channels: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Descriptors whose first channels depend on their class, and their classes, of which the last one never occurs."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, num_classes - 1, num_samples)
    descriptors = random.normal(size=(num_samples, channels)) + 0.7 * np.eye(num_classes, channels)[classes]
    return torch.from_numpy(descriptors), torch.from_numpy(classes)


def expected(descriptors: Tensor, truths: Tensor, strength: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Scikit-learn's weights, the biases last, which are penalised like all others."""
    inputs = F.pad(descriptors, (0, 1), value=1.0).numpy()
    fitted = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=20000).fit(inputs, truths.numpy())
    return np.asarray(fitted.coef_)


@pytest.mark.parametrize("penalty", [1.0, 0.03])
def test_weights_of_classes_are_scikit_learns(penalty: float) -> None:
    descriptors, classes = draw(0, 200, 8, 5)
    classes[:3] = 4
    path = fit_logistic(descriptors, F.one_hot(classes, 5), (10.0, penalty), exclusive=True)
    assert path[1].numpy() == pytest.approx(expected(descriptors, classes, 1 / (penalty * 200)), abs=1e-4)
    ((alone,),) = (fit_logistic(descriptors, F.one_hot(classes, 5), (penalty,), exclusive=True),)
    assert path[1].numpy() == pytest.approx(alone.numpy(), abs=1e-4), "wherever the search begins"


def test_weights_of_two_classes_are_the_halves_of_scikit_learns() -> None:
    descriptors, classes = draw(1, 120, 6, 3)
    (found,) = fit_logistic(descriptors, F.one_hot(classes, 2), (0.1,), exclusive=True)
    assert (found[1] - found[0]).numpy()[None] == pytest.approx(expected(descriptors, classes, 2 / (0.1 * 120)), abs=1e-4)


def test_weights_of_labels_are_those_of_a_regression_a_label() -> None:
    descriptors, classes = draw(2, 120, 6, 4)
    table = torch.stack([classes == 0, classes < 2, torch.arange(120) % 2 == 0], dim=1).long()
    (found,) = fit_logistic(descriptors, table, (0.05,), exclusive=False)
    for label in range(3):
        assert found[label].numpy()[None] == pytest.approx(expected(descriptors, table[:, label], 1 / (0.05 * 120)), abs=1e-4)


def test_a_class_that_never_occurs_and_samples_that_are_parted_wholly_have_a_minimum_too() -> None:
    descriptors, classes = draw(3, 30, 40, 4)
    (found,) = fit_logistic(descriptors, F.one_hot(classes, 4), (1e-3,), exclusive=True)
    told = logits_of(descriptors, found).softmax(dim=1)
    assert (told.argmax(dim=1) == classes).all()
    assert found.isfinite().all()
    assert told[:, 3].max() < 0.05


def model_of(task: Task, classes: tuple[str, ...]) -> Model:
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label", task=task),), freeze="all", fit=Fit(image_size_px=32))
    return build_model(variant, {"label": classes}, None, backbone=nn.Sequential())


def blocks(features: Tensor, labels: Tensor) -> list[Block]:
    """Stored features of the last stage, as maps of one position, some at a time."""
    return [Block({3: f[..., None, None]}, y) for f, y in zip(features.split(40), labels.split(40), strict=True)]


def fit(task: Task, classes: tuple[str, ...], labels: Tensor, features: Tensor) -> tuple[Model, FittedProbe]:
    model = model_of(task, classes)
    return model, fit_probe(model, blocks(features[:100], labels[:100]), blocks(features[100:], labels[100:]))


def answers(model: Model, features: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.heads["head0"](features[..., None, None])
    return logits


def test_the_head_holds_the_probe_that_is_best_on_validation_and_its_measures_are_scikit_learns() -> None:
    features, classes = draw(4, N, CHANNELS, 4)
    features[:, :4] *= 3
    model, probe = fit("classification", ("a", "b", "c"), classes, features.float())
    told = answers(model, features[100:].float()).double().softmax(dim=1).numpy()
    assert probe.metrics["val/label/accuracy"] == pytest.approx(accuracy_score(classes[100:], told.argmax(axis=1)))
    assert probe.metrics["val/label/loss"] == pytest.approx(log_loss(classes[100:], told, labels=[0, 1, 2]), rel=1e-5)
    normed = F.layer_norm(features.float(), (CHANNELS,))
    path = fit_logistic(normed[:100], F.one_hot(classes[:100], 3), PENALTIES, exclusive=True)
    scores = [
        (accuracy_score(classes[100:], logits.argmax(dim=1)), -F.cross_entropy(logits, classes[100:]).item())
        for logits in (logits_of(normed[100:], weights) for weights in path)
    ]
    assert probe.penalty == PENALTIES[scores.index(max(scores))]
    assert probe.temperatures.keys() == {"label"}
    assert probe.num_samples == 100


def test_samples_with_missing_labels_are_as_if_they_were_not_there() -> None:
    features, classes = draw(5, N, CHANNELS, 4)
    table = torch.stack([classes == 0, classes < 2], dim=1).long()
    table[::7] = -1
    known = (table >= 0).all(dim=1)
    model, probe = fit("multilabel", ("x", "y"), table, features.float())
    assert probe.num_samples == int(known[:100].sum())
    there = model_of("multilabel", ("x", "y"))
    own, told, first = features.float()[known], table[known], probe.num_samples
    alone = fit_probe(there, blocks(own[:first], told[:first]), blocks(own[first:], told[first:]))
    assert alone.metrics == pytest.approx(probe.metrics, abs=1e-6)
    assert (alone.penalty, alone.num_samples) == (probe.penalty, first)
    assert torch.equal(answers(there, features.float()), answers(model, features.float()))
    probabilities = answers(model, own[first:]).sigmoid().numpy()
    average = average_precision_score(told[first:].numpy(), probabilities, average="macro")
    assert probe.metrics["val/label/average_precision"] == pytest.approx(average, rel=1e-5)
    assert len(probe.thresholds["label"]) == 2


@pytest.mark.parametrize("damage", ["labels", "features"])
def test_what_no_probe_can_be_fitted_on_is_refused_with_the_reason(damage: str) -> None:
    features, classes = draw(6, N, CHANNELS, 3)
    if damage == "labels":
        classes[:100] = -1
    else:
        features[5, 7] = torch.inf
    with pytest.raises(TrainingDiverged, match="no training sample has a label" if damage == "labels" else "not all finite"):
        fit("classification", ("a", "b"), classes, features.float())
