import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from heads.catalogue import HEAD_DESIGNS
from heads.data.labels import MISSING_LABEL, has_label
from heads.spec import Fit
from heads.tasks.classifiers import DESIGNS, PooledNorm, build_net
from heads.tasks.single_choice import PLAIN, Criterion
from heads.tasks.single_choice import criterion_of as criterion_of_counts
from heads.training.metrics import summed_loss, summed_losses


def loss(logits: Tensor, labels: Tensor, weights: Tensor, criterion: Criterion = PLAIN) -> tuple[Tensor, Tensor]:
    """The summed loss, and how many labels it is over."""
    return summed_loss(criterion, logits, labels, weights), (weights * has_label(labels)).sum()


def criterion_of(fit: Fit, labels: Tensor) -> Criterion:
    known = labels[labels != MISSING_LABEL]
    return criterion_of_counts(fit, known.bincount(), len(known), torch.device("cpu"))


def test_the_designs_are_those_of_the_spec() -> None:
    assert tuple(DESIGNS) == HEAD_DESIGNS["classification"]


@given(st.integers(1, 20), st.integers(2, 5), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_loss_equals_scikit_learns_where_labels_and_weights_count(size: int, num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, num_classes, generator=generator)
    labels = torch.randint(MISSING_LABEL, num_classes, (size,), generator=generator)
    weights = torch.randint(0, 2, (size,), generator=generator).float()
    total, count = loss(logits, labels, weights)
    counts = (labels != MISSING_LABEL) & (weights > 0)
    assert count.item() == counts.sum().item()
    if counts.any():
        probabilities = logits[counts].double().softmax(dim=1).numpy()
        expected = log_loss(labels[counts].numpy(), probabilities, labels=np.arange(num_classes), normalize=False)
        assert total.item() == pytest.approx(expected, abs=1e-4)


def drawn_batch(num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, num_classes, generator=generator) * 3, torch.randint(0, num_classes, (30,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothed_and_balanced_losses_are_torchs_own_and_the_whole_train_split_weighs_one(smoothing: float) -> None:
    logits, labels = drawn_batch()
    labels[0] = MISSING_LABEL
    counts = torch.bincount(labels[1:], minlength=4)
    weights = 29 / (4 * counts)
    criterion = criterion_of(Fit(label_smoothing=smoothing, class_weights="balanced"), labels)
    total, count = loss(logits, labels, torch.ones(30), criterion)
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, ignore_index=MISSING_LABEL)
    torch.testing.assert_close(total / count, expected)
    unsmoothed = criterion_of(Fit(label_smoothing=smoothing), labels)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=MISSING_LABEL)
    torch.testing.assert_close(loss(logits, labels, torch.ones(30), unsmoothed)[0] / 29, expected)


def test_focal_loss_of_two_classes_is_torchvisions() -> None:
    logits, labels = drawn_batch(2)
    total, _ = loss(logits, labels, torch.ones(30), criterion_of(Fit(loss="focal"), labels))
    expected = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=-1, gamma=2, reduction="sum")
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("fit", [Fit(loss="focal"), Fit(loss="focal", label_smoothing=0.2, class_weights="balanced")])
def test_focal_loss_is_what_a_plain_loop_gives_padding_and_missing_labels_apart(fit: Fit) -> None:
    logits, labels = drawn_batch()
    labels[3], weights = MISSING_LABEL, torch.ones(30)
    weights[7] = 0
    expected = 0.0
    for row, label, weight in zip(logits.double().softmax(dim=1).tolist(), labels.tolist(), weights.tolist(), strict=True):
        for number, p in enumerate(row):
            share = (1 - fit.label_smoothing) * (number == label) + fit.label_smoothing / 4
            balance = 29 / (4 * labels.eq(number).sum().item()) if fit.class_weights == "balanced" else 1
            expected -= weight * (label >= 0) * share * balance * (1 - p) ** 2 * math.log(p)
    total, count = loss(logits, labels, weights, criterion_of(fit, labels))
    assert count == 28
    assert total.item() == pytest.approx(expected, rel=1e-5)
    # A sure hit is beyond single precision: no infinite gradient.
    sure = torch.tensor([[200.0, 0, 0, 0]], requires_grad=True)
    loss(sure, torch.tensor([0]), torch.ones(1), Criterion(2.0))[0].backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("fit", [Fit(), Fit(label_smoothing=0.1, class_weights="balanced"), Fit(loss="focal")], ids=str)
@pytest.mark.parametrize(("num", "size", "num_classes"), [(2, 1, 2), (3, 7, 9), (5, 33, 17), (4, 256, 10), (8, 50, 101)])
def test_the_losses_of_a_stack_and_their_gradients_are_those_of_each_to_the_bit(
    fit: Fit, num: int, size: int, num_classes: int
) -> None:
    generator = torch.Generator().manual_seed(size)
    stacked = torch.randn(num, size, num_classes, generator=generator) * 5
    labels = torch.randint(MISSING_LABEL, num_classes, (size,), generator=generator)
    labels[0] = num_classes - 1
    weights = torch.randint(0, 2, (size,), generator=generator).float()
    criterion = criterion_of(fit, labels)
    assert criterion.by_row == (fit.loss != "focal")
    stacked.requires_grad_()
    found = summed_losses(criterion, stacked, labels, weights)
    (gradients,) = torch.autograd.grad(found.sum() / size, stacked)
    for place in range(num):
        own = stacked[place].detach().requires_grad_()
        expected = summed_loss(criterion, own, labels, weights)
        assert torch.equal(found[place], expected)
        assert torch.equal(gradients[place], *torch.autograd.grad(expected / size, own))


def test_a_class_that_train_lacks_weighs_nothing() -> None:
    criterion = criterion_of(Fit(class_weights="balanced"), torch.tensor([0, 0, 2, MISSING_LABEL]))
    assert criterion.class_weights is not None
    assert criterion.class_weights.tolist() == [0.75, 0, 1.5]
    assert loss(torch.zeros(1, 4), torch.tensor([3]), torch.ones(1), criterion)[0] == 0


def test_missing_labels_and_padding_get_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    total, _ = loss(logits, torch.tensor([0, MISSING_LABEL, 2, 1]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    total.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=1) > 0).tolist() == [True, False, False, True]


def test_a_batch_without_any_label_has_a_loss_of_zero_and_a_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    total, count = loss(logits, torch.tensor([MISSING_LABEL, 1]), torch.tensor([1.0, 0.0]))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_head_gives_logits_for_one_image_in_train_mode(design: str, size: tuple[int, int]) -> None:
    head = build_net(design, Fit(), 16, 3).train()
    logits = head(torch.randn(1, 16, *size))
    assert logits.shape == (1, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("design", DESIGNS)
def test_a_new_head_favours_no_class(design: str) -> None:
    torch.manual_seed(0)
    probabilities = build_net(design, Fit(), 512, 4).eval()(torch.rand(8, 512, 2, 2) * 100).softmax(dim=1)
    torch.testing.assert_close(probabilities, torch.full((8, 4), 0.25), atol=0.05, rtol=0)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_head_does_not_care_how_loud_the_features_are(design: str) -> None:
    head, features = build_net(design, Fit(), 64, 3).eval(), torch.rand(2, 64, 3, 3)
    torch.testing.assert_close(head(features * 50), head(features), atol=1e-4, rtol=0)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_sample_is_read_alike_alone_and_in_a_batch(design: str) -> None:
    head, features = build_net(design, Fit(), 64, 3).eval(), torch.rand(4, 64, 3, 3)
    torch.testing.assert_close(head(features)[:1], head(features[:1]))


def test_attention_starts_as_the_mean_and_says_where_it_looks() -> None:
    head, features = build_net("attention", Fit(), 8, 3).eval(), torch.rand(2, 8, 4, 6)

    def attention() -> Tensor:
        return head[0].weigh(features.flatten(2).transpose(1, 2)).reshape(2, 4, 6)

    torch.testing.assert_close(attention(), torch.full((2, 4, 6), 1 / 24))
    torch.testing.assert_close(head[0](features), PooledNorm(8)(features))
    with torch.no_grad():
        head[0].query[5] = 30.0
    features[0, 5, 2, 3] = 50.0
    weights = attention()
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))
    assert weights[0].argmax().item() == 2 * 6 + 3
    pooled = torch.einsum("nhw,nchw->nc", weights, features)
    torch.testing.assert_close(head(features), head[1](F.layer_norm(pooled, (8,))))


def test_cosine_logits_are_scaled_cosines_that_learn_their_scale() -> None:
    head, features = build_net("cosine", Fit(), 8, 3).eval(), torch.rand(2, 8, 1, 1)
    descriptors, prototypes = F.layer_norm(features[..., 0, 0], (8,)), head[1].weight.detach()
    expected = [[10 * F.cosine_similarity(row, prototype, dim=0) for prototype in prototypes] for row in descriptors]
    torch.testing.assert_close(head(features), torch.tensor(expected))
    head(features)[0, 0].backward()
    assert head[1].log_scale.grad


def test_an_mlp_has_the_depth_width_activation_and_dropout_that_are_asked() -> None:
    fit = Fit(mlp_depth=2, mlp_width=32, mlp_activation="relu", mlp_dropout=0.5)
    layers = list(build_net("mlp", fit, 16, 3))[1:]
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    assert [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)] == [
        (16, 32),
        (32, 32),
        (32, 3),
    ]
    assert layers[2].p == 0.5
