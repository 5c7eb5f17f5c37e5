"""Masks: every decoder on every kind of backbone, losses as torch's and a plain loop's, measures as scikit-learn's."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from heads import decoders, segmentation
from heads.backbones import BACKBONES, build_stages
from heads.kinds import KINDS
from heads.labels import MISSING_LABEL
from heads.spec import HEAD_DESIGNS, Fit, Head

CPU = torch.device("cpu")
# Odd where the backbone allows it.
SIZES_PX = {"mobilenet_v2": 97, "squeezenet1_1": 65, "resnet18": 97, "convnext_tiny": 67, "vit_b_32": 96, "swin_t": 65}


def build(design: str, backbone: str, num_classes: int = 5) -> nn.Module:
    head = Head(target="mask", task="segmentation", design=design)
    return segmentation.build_head(head, Fit(), BACKBONES[backbone], num_classes)


@cache
def stage_features(backbone: str) -> tuple[Tensor, ...]:
    """What each stage gives for two images."""
    torch.manual_seed(0)
    features, found = torch.randn(2, 3, SIZES_PX[backbone], SIZES_PX[backbone]), []
    with torch.no_grad():
        for stage in build_stages(backbone, None).eval():
            features = stage(features)
            found.append(features.clone())
    return tuple(found)


def tapped(design: str, backbone: str) -> list[Tensor]:
    return [stage_features(backbone)[number] for number in segmentation.taps(design, BACKBONES[backbone])]


def test_the_task_is_served_by_this_room_with_the_designs_of_the_spec() -> None:
    assert KINDS["segmentation"] is segmentation
    assert tuple(decoders.DESIGNS) == HEAD_DESIGNS["segmentation"]


@pytest.mark.parametrize("design", decoders.DESIGNS)
@pytest.mark.parametrize("backbone", SIZES_PX)
def test_every_design_on_every_kind_of_backbone_gives_logits_at_its_finest_tap(design: str, backbone: str) -> None:
    torch.manual_seed(1)
    net, features = build(design, backbone), tapped(design, backbone)
    finest = features[0].shape[2:] if features[0].ndim == 4 else (3, 3)
    for num_images in (1, 2):
        net.zero_grad()
        logits = net.train()(*(given[:num_images] for given in features))
        assert logits.shape == (num_images, 5, *finest)
        assert logits.isfinite().all()
        labels = torch.arange(5).repeat(num_images * logits[0, 0].numel())[: logits[:, 0].numel()].reshape(logits[:, 0].shape)
        segmentation.PLAIN.losses(logits, labels).mean().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    assert net.eval()(*features).isfinite().all()


@pytest.mark.parametrize("design", decoders.DESIGNS)
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "vit_b_32"])
def test_in_eval_mode_an_image_is_read_alike_alone_and_in_a_batch(design: str, backbone: str) -> None:
    net, features = build(design, backbone).eval(), tapped(design, backbone)
    torch.testing.assert_close(net(*features)[:1], net(*(given[:1] for given in features)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("design", decoders.DESIGNS)
def test_one_image_with_maps_of_one_position_can_be_trained_on(design: str) -> None:
    backbone = BACKBONES["resnet18"]
    net = build(design, "resnet18").train()
    logits = net(*(torch.randn(1, backbone.channels[tap], 1, 1) for tap in segmentation.taps(design, backbone)))
    assert logits.shape == (1, 5, 1, 1)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_norm_of_one_value_uses_its_statistics_and_leaves_them() -> None:
    norm, one = decoders.MapNorm(3), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    torch.testing.assert_close(norm.train()(one), norm.eval()(one))
    torch.testing.assert_close(norm(one).flatten(), torch.tensor([0.0, 0.5, 1.0]))
    assert norm.running_mean.tolist() == [1.0] * 3
    many, reference = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3)
    torch.testing.assert_close(decoders.MapNorm(3).train()(many), reference(many))


def test_taps_are_the_last_stages_at_the_strides_a_design_wants() -> None:
    expected = {
        "mobilenet_v2": {"fcn": (8,), "lraspp": (3, 8), "unet": (1, 2, 3, 5, 8), "fpn": (2, 3, 5, 8)},
        "resnet18": {"deeplabv3": (4,), "lraspp": (2, 4), "unet": (1, 2, 3, 4), "fpn": (1, 2, 3, 4)},
        "squeezenet1_1": {"lraspp": (2, 3), "unet": (0, 1, 2, 3), "fpn": (1, 2, 3)},
        "inception_v3": {"lraspp": (1, 3), "unet": (1, 2, 3), "fpn": (1, 2, 3)},
        "vit_b_16": {"fcn": (4,), "lraspp": (3, 4), "unet": (0, 1, 2, 3, 4), "fpn": (0, 1, 2, 3, 4)},
    }
    for backbone, by_design in expected.items():
        assert {design: segmentation.taps(design, BACKBONES[backbone]) for design in by_design} == by_design


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_taps_for_every_design_front_to_back(backbone: str) -> None:
    strides = BACKBONES[backbone].strides
    for design in decoders.DESIGNS:
        taps = segmentation.taps(design, BACKBONES[backbone])
        assert list(taps) == sorted(set(taps))
        assert taps[-1] == len(strides) - 1
        assert len(taps) == {"fcn": 1, "deeplabv3": 1, "lraspp": 2}.get(design, len(taps))
        assert design not in ("unet", "fpn") or len(taps) > 1


def copied(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both in eval mode with their weights in ours, which has as many of the same shapes in the same order."""
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    return ours.eval(), theirs.eval()


def test_fcn_is_torchvisions() -> None:
    ours, theirs = copied(build("fcn", "resnet18"), FCNHead(512, 5))
    features = torch.randn(2, 512, 3, 5)
    torch.testing.assert_close(ours(features), theirs(features))


def test_lraspp_is_torchvisions() -> None:
    ours, theirs = copied(build("lraspp", "mobilenet_v2"), LRASPPHead(32, 1280, 5, 128))
    low, high = torch.randn(2, 32, 12, 13), torch.randn(2, 1280, 3, 4)
    torch.testing.assert_close(ours(low, high), theirs({"low": low, "high": high}))


def test_aspp_and_deeplab_are_torchvisions() -> None:
    features = torch.randn(2, 64, 9, 7)
    aspp, their_aspp = copied(decoders.ASPP(64, (3, 6, 9)), deeplabv3.ASPP(64, (3, 6, 9)))
    torch.testing.assert_close(aspp(features), their_aspp(features))
    net, theirs = copied(decoders.DeepLabV3([64], [8], 5), deeplabv3.DeepLabHead(64, 5))
    torch.testing.assert_close(net(features), theirs(features))


@pytest.mark.parametrize(("backbone", "rates"), [("squeezenet1_1", [6, 12, 18]), ("resnet18", [3, 6, 9])])
def test_atrous_rates_suit_the_stride(backbone: str, rates: list[int]) -> None:
    dilations = [layer.dilation[0] for layer in build("deeplabv3", backbone).modules() if isinstance(layer, nn.Conv2d)]
    assert [dilation for dilation in dilations if dilation > 1] == rates


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
