"""Classes, label sets and masks in one training; run as a program it is one rank of two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score

from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.data.masks import Masks
from heads.model.model import Model, build_model
from heads.spec import Fit, Head, Variant
from heads.tasks import multilabel, segmentation
from heads.training.loop import train
from heads.training.metrics import MetricAccumulator
from heads.training.mixup import Mix, draw_mix
from heads.training.state import Epoch, TrainingOutcome
from tests.heads.evaluating import evaluate, predict_table
from tests.heads.two_ranks import be_a_rank, digest_of, run_two_ranks

CLASSES = {"kind": ["disc", "square", "never"], "tags": ["dark", "large", "never", "red"], "mask": ["0", "5", "200"]}
NUM_TRAIN, NUM_VAL, SIZE_PX = 26, 12, 32
IGNORED = 255


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs and squares with their masks, whose left rim is ignored and in which value 200 never is."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(NUM_TRAIN + NUM_VAL):
        shape, pixels = draw(index)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
        values = np.where(shape, 5, 0).astype(np.uint8)
        values[:, :2] = IGNORED
        Image.fromarray(values).save(folder / f"mask-{index:03}.png")
    return folder


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the shape is, and the picture: a disc or a square by parity, large, dark, red as `tags_of` says."""
    dark, large, _, red = tags_of(index)
    random = np.random.default_rng(index)
    rows, columns = np.mgrid[-1:1:37j, -1:1:45j] + random.uniform(-0.2, 0.2, (2, 1, 1))
    radius = 0.75 if large else 0.45
    distance = np.hypot(rows, columns) if index % 2 == 0 else np.maximum(abs(rows), abs(columns))
    shape = distance < radius
    colour = np.array([255, 60, 60] if red else [60, 160, 255]) * (0.5 if dark else 1)
    pixels = np.where(shape[..., None], colour, 20) + random.normal(0, 8, (37, 45, 3))
    return shape, pixels.clip(0, 255).astype(np.uint8)


def tags_of(index: int) -> list[int]:
    return [index // 2 % 2, index // 3 % 2, 0, index // 5 % 2]


def dataset(folder: Path, numbers: list[int], variant: Variant, augment: str = "none") -> ImageDataset:
    """These pictures; every seventh lacks its class, every fifth its labels, every sixth its mask."""
    labels = {
        "kind": torch.tensor([-1 if i % 7 == 5 else i % 2 for i in numbers]),
        "tags": torch.tensor([[-1] * 4 if i % 5 == 3 else tags_of(i) for i in numbers]),
    }
    paths = [None if i % 6 == 2 else folder / f"mask-{i:03}.png" for i in numbers]
    masks = {"mask": Masks(paths, {0: 0, 5: 1, 200: 2}, [60_000, 20_000, 0])}
    return ImageDataset(
        [folder / f"{i:03}.png" for i in numbers],
        {target: column for target, column in labels.items() if target in targets_of(variant)},
        preprocess_for(variant.backbone, variant.fit.image_size_px, whole=variant.sees_whole),
        augment,  # type: ignore[arg-type]
        seed=variant.fit.seed,
        masks=masks if "mask" in targets_of(variant) else {},
    )


def targets_of(variant: Variant) -> list[str]:
    return [head.target for head in variant.heads]


def datasets(folder: Path, variant: Variant) -> tuple[ImageDataset, ImageDataset]:
    train_set = dataset(folder, list(range(NUM_TRAIN)), variant, variant.fit.augment)
    return train_set, dataset(folder, list(range(NUM_TRAIN, NUM_TRAIN + NUM_VAL)), variant)


def variant_of(backbone: str = "squeezenet1_1", freeze: str = "none", design: str = "unet", **fit: Any) -> Variant:
    settings = {"epochs": 8, "batch_size": 7, "image_size_px": SIZE_PX, "learning_rate": 0.003, "warmup": 0, **fit}
    heads = (
        Head(target="mask", task="segmentation", design=design, ignore=(IGNORED,)),
        Head(target="kind", design="linear"),
        Head(target="tags", task="multilabel", design="linear"),
    )
    return Variant(backbone=backbone, heads=heads, freeze=freeze, fit=Fit(**settings))


def run(variant: Variant, folder: Path, resume: Path | None = None, saves: Path | None = None) -> tuple[Model, TrainingOutcome]:
    def keep(epoch: Epoch, save: Any) -> None:
        if saves:
            save(saves / f"{epoch.index}.pt")

    model = build_model(variant, CLASSES, None)
    return model, train(model, variant, *datasets(folder, variant), device="cpu", resume=resume, on_epoch=keep)


PLAIN = variant_of()
# Two phases; and all that mixes, weighs and averages.
RICH = variant_of("mobilenet_v3_small", "lp_ft", "lraspp", epochs=2, head_weights="uncertainty", cutmix=1, mixup=0.4, ema=0.5)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, TrainingOutcome, Path]:
    saves = tmp_path_factory.mktemp("saves")
    return *run(PLAIN, pictures, saves=saves), saves


def test_three_kinds_of_heads_learn_together(trained: tuple[Model, TrainingOutcome, Path]) -> None:
    _, outcome, _ = trained
    first, last = outcome.epochs[0].metrics, outcome.epochs[-1].metrics
    assert last["train/loss"] < 0.8 * first["train/loss"]
    assert last["val/mask/miou"] > max(0.7, 1.5 * first["val/mask/miou"])
    assert {
        "val/mask/dice",
        "val/mask/pixel_accuracy",
        "val/mask/loss",
        "val/kind/accuracy",
        "val/tags/average_precision",
    } <= set(last)
    scores = [
        (e.metrics["val/mask/miou"] + e.metrics["val/kind/accuracy"] + e.metrics["val/tags/average_precision"]) / 3
        for e in outcome.epochs
    ]
    assert outcome.epochs[outcome.best_epoch].score[0] == pytest.approx(max(scores))
    assert set(outcome.confusion) == {"mask", "kind"}
    assert set(outcome.thresholds) == {"tags"}


def test_measures_are_scikit_learns_on_the_table_of_predictions(
    trained: tuple[Model, TrainingOutcome, Path], pictures: Path
) -> None:
    model, outcome, _ = trained
    val_set = datasets(pictures, PLAIN)[1]
    table = predict_table(model, val_set, device="cpu", batch_size=5)
    measured, confusion = evaluate(model, val_set, device="cpu", batch_size=5)
    for name, value in measured.items():
        assert value == pytest.approx(outcome.metrics[f"val/{name}"], rel=1e-4)
    assert confusion == outcome.confusion

    masks = np.stack([val_set[i][1]["mask"].numpy() for i in range(NUM_VAL)])
    told = np.stack([rows["mask"].argmax(dim=0).numpy() for _, rows in table])
    truths, guesses = masks[masks >= 0], told[masks >= 0]
    assert 0 < (masks < 0).sum() < masks.size
    occurring = sorted({*truths.tolist(), *guesses.tolist()})
    assert measured["mask/miou"] == pytest.approx(jaccard_score(truths, guesses, labels=occurring, average="macro"), abs=1e-6)
    assert measured["mask/pixel_accuracy"] == pytest.approx(accuracy_score(truths, guesses), abs=1e-6)
    assert measured["mask/dice"] == pytest.approx(f1_score(truths, guesses, labels=occurring, average="macro"), abs=1e-6)

    known = (val_set.labels["tags"] >= 0).all(dim=1).numpy()
    there = val_set.labels["tags"].numpy()[known]
    chances = np.stack([rows["tags"].numpy() for _, rows in table])[known]
    least = np.log(outcome.thresholds["tags"]) - np.log1p(-np.array(outcome.thresholds["tags"]))
    decided = chances >= 1 / (1 + np.exp(-least * outcome.temperatures["tags"]))
    assert measured["tags/f1_macro"] == pytest.approx(f1_score(there, decided, average="macro", zero_division=0), abs=1e-6)
    assert measured["tags/accuracy"] == pytest.approx(accuracy_score(there, decided), abs=1e-6)
    precisions = [average_precision_score(there[:, n], chances[:, n]) for n in range(4) if there[:, n].any()]
    assert measured["tags/average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)


def test_thresholds_are_those_that_the_kept_epochs_validation_asks_for(
    trained: tuple[Model, TrainingOutcome, Path], pictures: Path
) -> None:
    model, outcome, _ = trained
    val_set = datasets(pictures, PLAIN)[1]
    rows = torch.stack([rows["tags"] for _, rows in predict_table(model, val_set, device="cpu", batch_size=7)])
    truths = val_set.labels["tags"]
    known = (truths >= 0).all(dim=1)
    scores = torch.cat([truths.float(), rows], dim=1)[known]
    assert set(outcome.temperatures) == {"kind", "tags"}, "masks are told without probabilities"
    assert outcome.temperatures["tags"] == pytest.approx(multilabel.temperatures(scores[None])[0], rel=1e-3)
    tuned = multilabel.thresholds(scores, outcome.temperatures["tags"])
    assert outcome.thresholds["tags"] == pytest.approx(tuned, abs=1e-4)
    assert outcome.thresholds["tags"][2] == 0.5, "a label that is never there keeps even odds"


@pytest.mark.parametrize("variant", [PLAIN, RICH], ids=["plain", "rich"])
def test_going_on_after_an_epoch_gives_the_bits_of_an_uninterrupted_training(
    trained: tuple[Model, TrainingOutcome, Path], pictures: Path, tmp_path: Path, variant: Variant
) -> None:
    model, outcome, saves = trained if variant is PLAIN else (*run(variant, pictures, saves=tmp_path), tmp_path)
    resumed, again = run(variant, pictures, resume=saves / "0.pt")
    assert digest_of(resumed) == digest_of(model)
    assert [epoch.metrics for epoch in again.epochs] == [epoch.metrics for epoch in outcome.epochs]
    assert (again.confusion, again.thresholds) == (outcome.confusion, outcome.thresholds)
    assert again.temperatures == outcome.temperatures


def test_uncertainty_weighs_all_three_heads(pictures: Path) -> None:
    _, outcome = run(RICH, pictures)
    weights = [[epoch.metrics[f"train/{target}/head_weight"] for target in CLASSES] for epoch in outcome.epochs]
    assert all(0 < weight != 1 for row in weights for weight in row)
    assert len({tuple(row) for row in weights}) == len(weights)
    assert all(math.isfinite(x) for epoch in outcome.epochs for x in epoch.metrics.values())


@pytest.mark.parametrize("target", ["mask", "kind", "tags"])
def test_a_sample_without_a_label_is_as_good_as_not_there_for_that_head(pictures: Path, target: str) -> None:
    model = build_model(PLAIN, CLASSES, None).eval()
    lacking = {"kind": 5, "tags": 3, "mask": 2}[target]
    numbers = [0, 1, 4, lacking, 6, 7]
    every, without = (dataset(pictures, found, PLAIN) for found in (numbers, [n for n in numbers if n != lacking]))
    metrics, _ = evaluate(model, every, device="cpu", batch_size=4)
    expected, _ = evaluate(model, without, device="cpu", batch_size=4)
    mine = {name for name in metrics if name.startswith(f"{target}/")}
    assert len(mine) > 3
    for name in mine:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-6, nan_ok=True)
    other = "tags" if target == "kind" else "kind"
    assert metrics[f"{other}/loss"] != pytest.approx(expected[f"{other}/loss"], rel=1e-4), "it counts where it is labelled"

    gradients = [gradients_of(model, made, target) for made in (every, without)]
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])
    for with_it, without_it in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without_it, rtol=1e-4, atol=1e-6)


def gradients_of(model: Model, made: ImageDataset, target: str) -> list[torch.Tensor]:
    """What every parameter gets from one target's summed loss over a data set."""
    items = [made[index] for index in range(len(made))]
    labels = {name: torch.stack([item[1][name] for item in items]) for name in model.targets}
    model.zero_grad()
    losses = MetricAccumulator(model.tasks).add(model(torch.stack([item[0] for item in items])), labels, torch.ones(len(items)))
    losses[target].backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("target", ["mask", "kind", "tags"])
def test_a_head_without_any_label_trains_nothing_and_hurts_nobody(pictures: Path, target: str) -> None:
    variant = variant_of(epochs=1)
    lacking = [
        n for n in range(NUM_TRAIN) if n % {"kind": 7, "tags": 5, "mask": 6}[target] == {"kind": 5, "tags": 3, "mask": 2}[target]
    ]
    model = build_model(variant, CLASSES, None)
    before = {name: tensor.clone() for name, tensor in model.heads[model.head_keys[target]].named_parameters()}
    train_set = dataset(pictures, lacking, variant_of(weight_decay=0.0))
    outcome = train(
        model,
        variant_of(epochs=1, weight_decay=0.0),
        train_set,
        datasets(pictures, variant)[1],
        device="cpu",
        on_epoch=lambda *_: None,
    )
    assert math.isfinite(outcome.metrics["train/loss"])
    after = dict(model.heads[model.head_keys[target]].named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_patched_mask_fits_its_patched_image() -> None:
    masks = torch.randint(0, 3, (6, 20, 31), generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()
    patched = 0
    for step in range(30):
        mix = draw_mix(Fit(cutmix=1), images, epoch=0, step=step)
        assert mix is not None
        assert torch.equal(mix.images(images).argmax(dim=1), mix.patched(masks))
        patched += not torch.equal(mix.patched(masks), masks)
    assert patched > 20


def test_blended_images_count_for_both_masks_by_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(4, 3, 6, 5, generator=generator), torch.randint(-1, 3, (4, 6, 5), generator=generator)
    partners = torch.tensor([1, 2, 3, 0])
    losses = MetricAccumulator({"mask": "segmentation"}).add({"mask": logits}, {"mask": masks}, torch.ones(4), Mix(partners, 0.3))
    own, others = (segmentation.PLAIN.losses(logits, found).sum() for found in (masks, masks[partners]))
    torch.testing.assert_close(losses["mask"], 0.3 * own + 0.7 * others)


def test_patched_masks_count_once_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(4, 3, 6, 5, generator=generator), torch.randint(0, 3, (4, 6, 5), generator=generator)
    mix = Mix(torch.tensor([1, 2, 3, 0]), 1 - 6 / 30, (slice(1, 3), slice(1, 4)))
    tally = MetricAccumulator({"mask": "segmentation"})
    losses = tally.add({"mask": logits}, {"mask": masks}, torch.ones(4), mix)
    torch.testing.assert_close(losses["mask"], segmentation.PLAIN.losses(logits, mix.patched(masks)).sum())
    total = tally.totals()["mask"]
    assert total.num_labels == 4
    assert np.sum(total.confusion) == masks.numel()


def test_two_processes_measure_as_one_does_and_keep_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    first = run_two_ranks(__file__, pictures, tmp_path)
    metrics, confusion = evaluate(build_model(PLAIN, CLASSES, None), datasets(pictures, PLAIN)[1], device="cpu", batch_size=4)
    assert first["evaluated"] == [pytest.approx(metrics, rel=1e-6, nan_ok=True), confusion]
    assert all(math.isfinite(x) for epoch in first["epochs"] for x in epoch.values())


def measure_and_train(pictures: Path) -> dict[str, Any]:
    """What one of two processes measures and trains, which must be equal on both."""
    evaluated = evaluate(build_model(PLAIN, CLASSES, None), datasets(pictures, PLAIN)[1], device="cpu", batch_size=4)
    model, outcome = run(RICH, pictures)
    return {
        "evaluated": evaluated,
        "epochs": [epoch.metrics for epoch in outcome.epochs],
        "thresholds": outcome.thresholds,
        "temperatures": outcome.temperatures,
        "confusion": outcome.confusion,
        "digest": digest_of(model),
    }


if __name__ == "__main__":
    be_a_rank(measure_and_train)
