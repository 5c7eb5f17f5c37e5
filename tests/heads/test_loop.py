"""Training repeats, resumes and adds up the same whatever the number of processes; run as a program it is one rank of two."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.data.loading import shuffle, split_steps
from heads.distributed import rank
from heads.errors import HeadsError
from heads.model.model import Model, build_model
from heads.phases import Phase
from heads.spec import Fit, Head, Variant
from heads.tasks.measures import as_floats, from_scores
from heads.training import checkpoint
from heads.training.compile_payback import CompileCase, CompileTimes
from heads.training.loop import train
from heads.training.state import Epoch, TrainingOutcome
from tests.heads.evaluating import evaluate, predict_table
from tests.heads.frozen import frozen_digest
from tests.heads.two_ranks import be_a_rank, digest_of, run_two_ranks

CLASSES = {"kind": ["disc", "square", "stripes"], "a.b/c": ["dark", "light"]}
NUM_TRAIN, NUM_VAL, SIZE_PX = 23, 11, 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(NUM_TRAIN + NUM_VAL):
        draw(index).save(folder / f"{index:03}.png")
    return folder


def draw(index: int) -> Image.Image:
    """Disc, square or stripes by index modulo 3, dark or light by its parity, with noise."""
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    shapes = [np.hypot(rows, columns) < 0.7, np.maximum(abs(rows), abs(columns)) < 0.6, np.sin(rows * 12) > 0]
    noise = np.random.default_rng(index).normal(0, 20, (32, 32, 3))
    pixels = shapes[index % 3][..., None] * 90 + (120 if index % 2 else 20) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def datasets(folder: Path, variant: Variant) -> tuple[ImageDataset, ImageDataset]:
    files = sorted(folder.glob("*.png"))
    preprocess = preprocess_for(variant.backbone, variant.fit.image_size_px)
    # Some labels are missing in either set.
    labels = {
        "kind": [-1 if i % 7 == 5 else i % 3 for i in range(len(files))],
        "a.b/c": [-1 if i % 5 == 3 else i % 2 for i in range(len(files))],
    }
    return tuple(  # type: ignore[return-value]
        ImageDataset(files[part], {t: column[part] for t, column in labels.items()}, preprocess, augment, seed=variant.fit.seed)
        for part, augment in ((slice(NUM_TRAIN), variant.fit.augment), (slice(NUM_TRAIN, None), "none"))
    )


def variant_of(backbone: str = "mobilenet_v3_small", freeze: str = "lp_ft", design: str = "mlp", **fit: Any) -> Variant:
    settings = {"epochs": 4, "batch_size": 6, "image_size_px": SIZE_PX, "learning_rate": 0.002, **fit}
    heads = tuple(Head(target=target, design=design) for target in CLASSES)
    return Variant(backbone=backbone, heads=heads, freeze=freeze, fit=Fit(**settings))


def run(variant: Variant, folder: Path, resume: Path | None = None, saves: Path | None = None) -> tuple[Model, TrainingOutcome]:
    def keep(epoch: Epoch, save: Any) -> None:
        if saves:
            save(saves / f"{epoch.index}.pt")

    model = build_model(variant, CLASSES, None)
    return model, train(model, variant, *datasets(folder, variant), device="cpu", resume=resume, on_epoch=keep)


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_seconds(outcome: TrainingOutcome) -> list[tuple[Any, ...]]:
    return [(e.index, e.phase, e.metrics, e.num_forwarded, e.learning_rate) for e in outcome.epochs]


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, TrainingOutcome, Path]:
    saves = tmp_path_factory.mktemp("saves")
    model, outcome = run(variant_of(), pictures, saves=saves)
    return model, outcome, saves


def test_training_learns_and_its_outcome_adds_up(uninterrupted: tuple[Model, TrainingOutcome, Path]) -> None:
    _, outcome, _ = uninterrupted
    assert [epoch.phase for epoch in outcome.epochs] == [0, 1, 1, 1]
    assert outcome.epochs[-1].metrics["train/loss"] < outcome.epochs[0].metrics["train/loss"]
    assert outcome.num_forwarded == 4 * (NUM_TRAIN + NUM_VAL)
    assert outcome.ended == "all 4 epochs are done"
    assert outcome.metrics == outcome.epochs[outcome.best_epoch].metrics
    assert {"train/loss", "train/kind/accuracy", "val/kind/f1_macro", "val/a.b/c/accuracy", "val/a.b/c/loss"} <= set(
        outcome.metrics
    )
    confusion = torch.tensor(outcome.confusion["kind"])
    labelled = sum(i % 7 != 5 for i in range(NUM_TRAIN, NUM_TRAIN + NUM_VAL))
    assert confusion.sum() == labelled
    assert confusion.trace() / labelled == pytest.approx(outcome.metrics["val/kind/accuracy"])


def test_the_model_ends_with_the_best_epochs_weights(uninterrupted: tuple[Model, TrainingOutcome, Path], pictures: Path) -> None:
    model, outcome, _ = uninterrupted
    metrics, confusion = evaluate(model, datasets(pictures, variant_of())[1], device="cpu", batch_size=6)
    assert confusion == outcome.confusion
    assert metrics["kind/loss"] == pytest.approx(outcome.metrics["val/kind/loss"], rel=1e-5)
    scores = [(e.metrics["val/kind/accuracy"] + e.metrics["val/a.b/c/accuracy"]) / 2 for e in outcome.epochs]
    assert scores[outcome.best_epoch] == max(scores)


def test_training_twice_gives_the_same_bits(uninterrupted: tuple[Model, TrainingOutcome, Path], pictures: Path) -> None:
    model, outcome = run(variant_of(), pictures)
    assert same(model, uninterrupted[0])
    assert without_seconds(outcome) == without_seconds(uninterrupted[1])


@pytest.mark.parametrize("epoch", range(4))
def test_going_on_after_any_epoch_gives_the_bits_of_an_uninterrupted_training(
    uninterrupted: tuple[Model, TrainingOutcome, Path], pictures: Path, epoch: int
) -> None:
    torch.manual_seed(epoch)
    model, outcome = run(variant_of(), pictures, resume=uninterrupted[2] / f"{epoch}.pt")
    assert same(model, uninterrupted[0])
    assert without_seconds(outcome) == without_seconds(uninterrupted[1])
    assert outcome.confusion == uninterrupted[1].confusion


def test_what_weighs_the_heads_is_trained_kept_and_left_out_of_the_model(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of("squeezenet1_1", "lp_ft", "cosine", epochs=3, head_weights="uncertainty", mixup=0.3, cutmix=1)
    model, outcome = run(variant, pictures, saves=tmp_path)
    weights = [[epoch.metrics[f"train/{target}/head_weight"] for target in CLASSES] for epoch in outcome.epochs]
    assert all(0 < weight != 1 for row in weights for weight in row)
    assert weights[0] != weights[1] != weights[2]
    assert model.state_dict().keys() == build_model(variant, CLASSES, None).state_dict().keys()
    for epoch in (0, 1):
        other, resumed = run(variant, pictures, resume=tmp_path / f"{epoch}.pt")
        assert same(model, other)
        assert without_seconds(resumed) == without_seconds(outcome)


def test_a_checkpoint_of_another_variant_or_none_at_all_is_refused(
    uninterrupted: tuple[Model, TrainingOutcome, Path], pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(HeadsError, match="is a checkpoint of variant"):
        run(variant_of(learning_rate=0.1), pictures, resume=uninterrupted[2] / "1.pt")
    with pytest.raises(HeadsError, match="there is no checkpoint"):
        run(variant_of(), pictures, resume=tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(HeadsError, match=r"text\.pt"):
        run(variant_of(), pictures, resume=tmp_path / "text.pt")
    content = (uninterrupted[2] / "1.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(HeadsError, match=r"cut\.pt"):
        run(variant_of(), pictures, resume=tmp_path / "cut.pt")


class Mischief:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_a_checkpoint_with_pickled_code_is_refused_and_not_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Mischief()}, tmp_path / "bad.pt")
    with pytest.raises(HeadsError, match="refused"):
        checkpoint.load(tmp_path / "bad.pt", variant_of())
    assert not (tmp_path / "executed").exists()


def test_a_loss_that_is_no_number_ends_the_training_and_saves_nothing(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of("squeezenet1_1", "none", "linear", learning_rate=9.9, epochs=3)
    model = build_model(variant, CLASSES, None)
    with torch.no_grad():
        next(model.heads.parameters()).fill_(math.inf)
    with pytest.raises(HeadsError, match=r"training diverged in epoch 0.*lower learning_rate, now 9\.9"):
        train(model, variant, *datasets(pictures, variant), device="cpu", on_epoch=lambda epoch, save: save(tmp_path / "x.pt"))
    assert not list(tmp_path.iterdir())


def test_patience_ends_a_training_that_brings_nothing_better(pictures: Path) -> None:
    variant = variant_of("squeezenet1_1", "all", "linear", learning_rate=1e-9, epochs=8, patience=2)
    _, outcome = run(variant, pictures)
    assert outcome.ended == outcome.epochs[-1].ended
    assert "none of the last 2 validated better than epoch" in outcome.ended
    assert all(epoch.ended is None for epoch in outcome.epochs[:-1])
    assert len(outcome.epochs) == outcome.best_epoch + 3
    assert outcome.num_forwarded == len(outcome.epochs) * (NUM_TRAIN + NUM_VAL)
    late = variant_of("squeezenet1_1", "lp_ft", "linear", learning_rate=1e-9, epochs=9, patience=1)
    assert len(run(late, pictures)[1].epochs) > 3, "the phase that fine-tunes was never reached"


def test_a_frozen_backbone_is_the_same_to_the_bit_after_training(pictures: Path) -> None:
    variant = variant_of(freeze="upto:stage2", epochs=2)
    phase = Phase(0, 2, 3)
    model = build_model(variant, CLASSES, None)
    before = frozen_digest(model, phase)
    train(model, variant, *datasets(pictures, variant), device="cpu", on_epoch=lambda *_: None)
    assert frozen_digest(model, phase) == before


@pytest.mark.parametrize("variant", [variant_of(batch_size=1, freeze="none", epochs=1), variant_of(precision="bf16", epochs=1)])
def test_one_image_batches_and_bfloat16_and_loader_workers_train_too(pictures: Path, variant: Variant) -> None:
    model = build_model(variant, CLASSES, None)
    outcome = train(model, variant, *datasets(pictures, variant), device="cpu", on_epoch=lambda *_: None, num_loader_workers=1)
    assert math.isfinite(outcome.metrics["train/loss"])
    assert outcome.num_forwarded == NUM_TRAIN + NUM_VAL


def test_an_empty_set_is_refused(pictures: Path) -> None:
    variant = variant_of()
    full = datasets(pictures, variant)[0]
    empty = ImageDataset([], {}, full.preprocess)
    with pytest.raises(HeadsError, match="no samples to evaluate"):
        train(build_model(variant, CLASSES, None), variant, full, empty, device="cpu", on_epoch=lambda *_: None)


def test_a_table_of_predictions_agrees_with_the_evaluation(
    uninterrupted: tuple[Model, TrainingOutcome, Path], pictures: Path
) -> None:
    val_set = datasets(pictures, variant_of())[1]
    table = predict_table(uninterrupted[0], val_set, device="cpu", batch_size=4)
    assert [index for index, _ in table] == list(range(NUM_VAL))
    confusion = np.zeros((3, 3), dtype=int)
    for index, rows in table:
        assert rows["kind"].sum() == pytest.approx(1)
        if (truth := int(val_set.labels["kind"][index])) >= 0:
            confusion[truth, rows["kind"].argmax()] += 1
    assert confusion.tolist() == uninterrupted[1].confusion["kind"]
    labels = val_set.labels["kind"]
    scores = torch.stack([rows["kind"] for _, rows in table])[labels >= 0]
    expected = as_floats(from_scores(scores, labels[labels >= 0]))
    assert set(expected) == {"auroc", "average_precision", "ece", "brier"}
    measured = evaluate(uninterrupted[0], val_set, device="cpu", batch_size=4)[0]
    assert {name: measured[f"kind/{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "size", "ranks", "least"), [(23, 6, 1, 2), (23, 6, 2, 2), (25, 6, 2, 2), (1, 4, 3, 2), (10, 3, 4, 1)]
)
def test_the_steps_of_all_ranks_read_every_image_once_and_have_equal_lengths(
    length: int, size: int, ranks: int, least: int
) -> None:
    order = shuffle(length, seed=1, epoch=2)
    shares = [split_steps(order, size, rank=rank, num_ranks=ranks, least=least) for rank in range(ranks)]
    read = torch.cat([step.here[step.weights > 0] for steps in shares for step in steps])
    assert sorted(read.tolist()) == list(range(length))
    for steps in zip(*shares, strict=True):
        assert len({len(step.here) for step in steps}) == 1
        assert len(steps[0].here) >= least
        assert sum(step.weights.sum() for step in steps) == len(steps[0].everywhere)


def test_shuffles_differ_by_epoch_and_seed() -> None:
    assert not torch.equal(shuffle(50, 0, 0), shuffle(50, 0, 1))
    assert not torch.equal(shuffle(50, 0, 0), shuffle(50, 1, 0))
    assert torch.equal(shuffle(50, 3, 4), shuffle(50, 3, 4))


# Without BatchNorm and dropout two ranks compute what one does, to rounding; with them each rank has its own.
PLAIN = variant_of(
    "squeezenet1_1",
    "lp_ft",
    "linear",
    epochs=3,
    loss="focal",
    label_smoothing=0.1,
    class_weights="balanced",
    head_weights="uncertainty",
)
NORMED = variant_of(freeze="upto:stage1", epochs=1, ema=0.5)
SUMMED = variant_of(
    "squeezenet1_1", "none", "linear", epochs=2, batch_size=4, accumulate=3, optimiser="sgd", head_weights="uncertainty"
)

COMPILED = variant_of("squeezenet1_1", "none", "linear", epochs=2, optimiser="sgd", compile=True)
ADAPTIVE = variant_of("squeezenet1_1", freeze="adaptive", schedule="step", epochs=4, warmup=0, ema=0.5)


class FirstKnows:
    """Compile times that only rank 0 has, which alone is asked for them."""

    def read(self, case: CompileCase) -> CompileTimes:
        assert (rank(), case.num_ranks) == (0, 2)
        return CompileTimes(0.0, 1.0, 0.5)

    def write(self, case: CompileCase, times: CompileTimes) -> None:
        raise AssertionError("so few steps tell nothing")


def test_two_processes_measure_and_train_as_one_does(pictures: Path, tmp_path: Path) -> None:
    first = run_two_ranks(__file__, pictures, tmp_path)
    untrained = build_model(PLAIN, CLASSES, None)
    metrics, confusion = evaluate(untrained, datasets(pictures, PLAIN)[1], device="cpu", batch_size=4)
    assert first["evaluated"][1] == confusion
    assert first["evaluated"][0] == pytest.approx(metrics, rel=1e-6)

    _, outcome = run(PLAIN, pictures)
    assert first["num_forwarded"] == outcome.num_forwarded
    assert first["epochs"] == [pytest.approx(epoch.metrics, rel=1e-3) for epoch in outcome.epochs]
    assert first["summed"] == [pytest.approx(epoch.metrics, rel=1e-3) for epoch in run(SUMMED, pictures)[1].epochs]


def measure_and_train(pictures: Path) -> dict[str, Any]:
    """What one of two processes measures and trains, which must be equal on both."""
    model = build_model(PLAIN, CLASSES, None)
    evaluated = evaluate(model, datasets(pictures, PLAIN)[1], device="cpu", batch_size=4)
    trained, outcome = run(PLAIN, pictures)
    normed = build_model(NORMED, CLASSES, None)
    before = frozen_digest(normed, Phase(0, 1, 2))
    train(normed, NORMED, *datasets(pictures, NORMED), device="cpu", on_epoch=lambda *_: None)
    assert frozen_digest(normed, Phase(0, 1, 2)) == before
    summed, summed_outcome = run(SUMMED, pictures)
    adaptive, adaptive_outcome = run(ADAPTIVE, pictures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda forward, **_: forward)
        compiled = build_model(COMPILED, CLASSES, None)
        sets = datasets(pictures, COMPILED)
        told = train(compiled, COMPILED, *sets, device="cpu", on_epoch=lambda *_: None, compile_records=FirstKnows())
    assert [epoch.is_compiled for epoch in told.epochs] == [True, True], "what rank 0 decides holds for all"
    assert any(epoch.num_frozen_stages for epoch in adaptive_outcome.epochs)
    return {
        "evaluated": evaluated,
        "epochs": [epoch.metrics for epoch in outcome.epochs],
        "num_forwarded": outcome.num_forwarded,
        "summed": [epoch.metrics for epoch in summed_outcome.epochs],
        "digests": [digest_of(trained), digest_of(normed), digest_of(summed), digest_of(adaptive), digest_of(compiled)],
        "decisions": [epoch.decisions for epoch in adaptive_outcome.epochs],
    }


if __name__ == "__main__":
    be_a_rank(measure_and_train)
