"""Attacks against foolbox, corruptions against plain references, and a bundle's readings against its own predictions."""

from __future__ import annotations

import colorsys
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from heads import bundle as bundles
from heads.bundle import Bundle, robustness
from heads.bundle.attacks import fgsm, loss_gradients, pgd
from heads.bundle.robustness import EPS, UNBOUNDED, Picture, measure
from heads.data.corruptions import CORRUPTIONS, STRENGTHS, convolve, corrupt, disk, streak
from heads.data.image_transforms import preprocess_for
from heads.errors import HeadsError
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("eps", [1 / 255, 4 / 255, 1.0])
def test_fgsm_and_pgd_are_those_of_foolbox(network: nn.Module, eps: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
        from foolbox.attacks import LinfFastGradientAttack, LinfPGD
    images, truths = torch.rand(6, 3, 12, 12), torch.tensor([0, 1, 2, 3, 0, 1])
    attacked = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")

    def losses(changed: Tensor) -> Tensor:
        return F.cross_entropy(network(changed), truths, reduction="none")

    (expected,), _, _ = LinfFastGradientAttack()(attacked, images, truths, epsilons=[eps])
    assert torch.allclose(fgsm(losses, images, eps), expected, atol=1e-6)
    attack = LinfPGD(abs_stepsize=eps / 4, steps=10, random_start=False)
    (expected,), _, _ = attack(attacked, images, truths, epsilons=[eps])
    found = pgd(losses, images, eps, num_steps=10, step=eps / 4)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (losses(found) >= losses(images)).all()
    start = 2 * torch.rand(6, 3, 12, 12) - 1
    begun = pgd(losses, images, eps, num_steps=0, step=0.0, start=start)
    assert torch.equal(begun, (images + eps * start).clamp(0, 1))


def test_gradients_are_by_each_image_alone_and_leave_nothing_behind(network: nn.Module) -> None:
    images = torch.rand(3, 3, 12, 12)
    network.zero_grad()
    found, gradients = loss_gradients(lambda changed: network(changed).pow(2).sum(dim=1), images)
    (alone,) = (loss_gradients(lambda changed: network(changed).pow(2).sum(dim=1), images[1:2])[1],)
    assert torch.allclose(gradients[1:2], alone, atol=1e-7)
    assert not found.requires_grad
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def photograph(seed: int, size: int = 64) -> Image.Image:
    """Soft shapes, as in photographs, in colours."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(20, 236, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((size + 16, size), Image.Resampling.BICUBIC)


def as_floats(image: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(image, dtype=np.float64) / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_every_time_and_grows_with_its_strength(name: str) -> None:
    image = photograph(1)
    once = [corrupt(image, name, strength, "d1") for strength in STRENGTHS]
    again = [corrupt(image, name, strength, "d1") for strength in STRENGTHS]
    assert [one.tobytes() for one in once] == [one.tobytes() for one in again]
    assert {one.size for one in once} == {image.size}
    moved = [np.abs(as_floats(one) - as_floats(image)).mean() for one in once]
    assert 0 < moved[0] < moved[1] < moved[2]
    chance = name.endswith("noise") or name == "motion_blur"
    assert (corrupt(image, name, 2, "d2").tobytes() != once[1].tobytes()) == chance


def test_noises_have_the_moments_of_their_distributions() -> None:
    grey = Image.new("RGB", (300, 300), (128, 128, 128))
    level = 128 / 255
    normal, shot, impulse = (as_floats(corrupt(grey, f"{name}_noise", 1, "d")) for name in ("gaussian", "shot", "impulse"))
    assert normal.mean() == pytest.approx(level, abs=2e-3)
    assert normal.std() == pytest.approx(0.08, rel=0.02)
    assert shot.mean() == pytest.approx(level, abs=2e-3)
    assert shot.std() == pytest.approx(np.sqrt(level / 60), rel=0.02)
    assert (impulse == 0).mean() == pytest.approx(0.015, rel=0.1)
    assert (impulse == 1).mean() == pytest.approx(0.015, rel=0.1)
    assert ((impulse != 0) & (impulse != 1)).mean() == pytest.approx(0.97, abs=0.003)


@pytest.mark.parametrize("kernel", [disk(2.5), streak(6.0, 3.0, 30.0), streak(1.0, 0.5, -45.0)])
def test_blurs_are_convolutions_that_keep_the_mean_and_repeat_the_edge(kernel: np.ndarray) -> None:  # type: ignore[type-arg]
    pixels = as_floats(photograph(2, 40)).astype(np.float32)
    expected = np.stack([ndimage.correlate(pixels[..., c], kernel, mode="nearest") for c in range(3)], axis=-1)
    np.testing.assert_allclose(convolve(pixels, kernel), expected, atol=1e-5)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert kernel.min() >= 0


def test_brightness_contrast_and_jpeg_are_those_of_plain_references() -> None:
    image = photograph(3, 24)
    pixels = as_floats(image)
    hsv = [[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in pixels]
    raised = [[colorsys.hsv_to_rgb(h, s, min(1, v + 0.3)) for h, s, v in row] for row in hsv]
    np.testing.assert_allclose(as_floats(corrupt(image, "brightness", 2, "d")), raised, atol=0.5 / 255 + 1e-6)
    assert corrupt(Image.new("RGB", (8, 8)), "brightness", 1, "d").getpixel((0, 0)) == (26, 26, 26)
    mean = pixels.mean(axis=(0, 1))
    np.testing.assert_allclose(as_floats(corrupt(image, "contrast", 2, "d")), (pixels - mean) * 0.2 + mean, atol=0.5 / 255 + 1e-6)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=15)
    assert corrupt(image, "jpeg", 2, "d").tobytes() == Image.open(file).convert("RGB").tobytes()


def bundle_of(folder: Path, task: str) -> Bundle:
    head = Head(target="label", task=task)  # type: ignore[arg-type]
    variant = Variant(backbone="squeezenet1_1", heads=(head,), fit=Fit(image_size_px=32))
    classes = {"label": ("a", "b", "c")}
    torch.manual_seed(1)
    model = build_model(variant, classes, None)
    with torch.no_grad():
        # So strong that the image decides, and not the bias.
        for parameter in model.heads.parameters():
            parameter.mul_(40)
    thresholds = {"label": (0.4, 0.5, 0.6)} if task == "multilabel" else None
    preprocess = preprocess_for("squeezenet1_1", 32)
    bundles.save(folder, model=model, variant=variant, classes=classes, preprocess=preprocess, facts={}, thresholds=thresholds)
    return bundles.load(folder)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_readings_are_the_bundles_own_predictions_and_attacks_grow_stronger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    bundle, pictures = bundle_of(tmp_path / "bundle", task), []
    monkeypatch.setattr(robustness, "BATCH_SIZE", 8)
    for number in range(12):
        photograph(number).save(tmp_path / f"{number}.png")
        (answer,) = bundle.predict([tmp_path / f"{number}.png"])
        told = answer["label"].label if task == "classification" else "|".join(answer["label"].labels)  # type: ignore[union-attr]
        pictures.append(Picture(tmp_path / f"{number}.png", f"{number:032}", told))
    pictures[0] = Picture(pictures[0].file, pictures[0].digest, "unknown" if task == "classification" else "a|b|c")
    done: list[int] = []
    found = measure(bundle, "label", pictures, num_attacked=11, num_unbounded=9, on_done=done.append)
    assert done == [8, 12]
    assert found.right["clean"][1:] == [1.0] * 11
    assert found.right["clean"][0] < 1
    attacks = {f"{kind} {eps}" for kind in ("fgsm", "pgd") for eps in EPS}
    assert {name: len(values) for name, values in found.right.items()} == {
        "clean": 12,
        UNBOUNDED: 9,
        **dict.fromkeys(attacks, 11),
        **dict.fromkeys([f"{name} {strength}" for name in CORRUPTIONS for strength in STRENGTHS], 12),
    }
    right: Callable[[str], float] = lambda name: float(np.mean(found.right[name][:9]))  # noqa: E731
    assert right(UNBOUNDED) < 0.1
    assert right("pgd 4/255") <= right("fgsm 4/255") + 1e-9 <= right("clean") + 2e-9
    assert right("pgd 4/255") <= right("pgd 1/255")
    assert np.mean(found.losses["end"]) > np.mean(found.losses["start"])
    altered = [corrupt(Image.open(p.file), "contrast", 3, p.digest) for p in pictures]
    answers = bundle.predict(altered)
    for picture, answer, reading in zip(pictures[1:], answers[1:], found.right["contrast 3"][1:], strict=True):
        if task == "classification":
            expected = float(answer["label"].label == picture.truth)  # type: ignore[union-attr]
        else:
            told, truth = set(answer["label"].labels), set(picture.truth.split("|"))  # type: ignore[union-attr]
            expected = float(told == truth - {""})
        assert reading == expected


def test_a_target_of_masks_is_refused(tmp_path: Path) -> None:
    variant = Variant(
        backbone="squeezenet1_1", heads=(Head(target="m", task="segmentation", design="fcn"),), fit=Fit(image_size_px=32)
    )
    model = build_model(variant, {"m": ("0", "1")}, None)
    bundle = Bundle(model, variant, {"m": ("0", "1")}, preprocess_for("squeezenet1_1", 32, whole=True), {})
    with pytest.raises(HeadsError, match="robustness of 'm' is not defined: it is segmentation; allowed: classes and label sets"):
        measure(bundle, "m", [], num_attacked=1, num_unbounded=1)
