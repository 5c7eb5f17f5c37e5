"""Stacks as they train on a GPU, all heads by the same calls: run on a CPU here, against each training by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heads.catalogue import Task
from heads.features import FeatureStore
from heads.fused.row_layout import RowLayout
from heads.fused.rows_optimizer import rows_optimizer
from heads.fused.stacked_metrics import StackedMetrics
from heads.spec import Variant
from heads.training.metrics import MetricAccumulator
from heads.training.state import TrainingOutcome
from tests.heads.stored_training import (
    KIND,
    LABELS,
    LINEAR,
    datasets,
    distance,
    fill,
    loaders_of,
    pictures,
    run,
    train_side_by_side,
)
from tests.heads.stored_training import variant_of as variant
from tests.heads.test_fused_optimizer import NUM, RATES, SHAPES, Build, adamw, draw, make, sgd

__all__ = ["pictures"]

ROUNDING = 1e-5
# By loss and accuracy: of nine samples, rounding may change ranks and bins.
SMOOTH = ("loss", "accuracy", "brier")
STACKS = {
    "adamw": [
        variant(KIND, learning_rate=0.01, mlp_dropout=0.4),
        variant(KIND, learning_rate=0.002, mlp_dropout=0.4, weight_decay=0.1, gradient_clip=0.1, schedule="step"),
        variant(KIND, learning_rate=0.01, mlp_dropout=0.4, epochs=9, patience=1, schedule="plateau"),
    ],
    "sgd with averages": [
        variant(LINEAR, LABELS, optimiser="sgd", learning_rate=rate, ema=rate * 30, accumulate=2, weight_decay=0.1)
        for rate in (0.01, 0.03)
    ],
    "labels": [
        variant(LABELS, loss="focal", class_weights="balanced", label_smoothing=0.1, learning_rate=rate) for rate in (0.01, 0.003)
    ],
}


@pytest.mark.parametrize("name", STACKS)
def test_heads_that_learn_at_once_end_and_resume_as_each_does_alone_but_for_rounding(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants: list[Variant] = STACKS[name]
    sets, store = datasets(pictures, variants[0]), FeatureStore(tmp_path / "store")
    fill(variants[0], sets, store)
    alone = [run(each, sets, loaders_of(each, sets, store)) for each in variants]
    monkeypatch.setattr("heads.model.precision.EXACT_DEVICES", ())
    whole = train_side_by_side(variants, sets, store, saves=tmp_path)
    resumed = train_side_by_side(variants, sets, store, resume={0: tmp_path / "0.1.pt"})
    for (expected, outcome), (model, end, told), (again, _, _) in zip(alone, whole, resumed, strict=True):
        assert isinstance(end, TrainingOutcome)
        assert distance(expected, model) < ROUNDING
        assert distance(model, again) < ROUNDING
        assert told == list(range(len(outcome.epochs)))
        assert (end.best_epoch, end.ended, end.confusion) == (outcome.best_epoch, outcome.ended, outcome.confusion)
        assert [epoch.learning_rate for epoch in end.epochs] == [epoch.learning_rate for epoch in outcome.epochs]
        assert end.metrics.keys() == outcome.metrics.keys()
        smooth = {key: value for key, value in outcome.metrics.items() if key.endswith(SMOOTH)}
        assert {key: end.metrics[key] for key in smooth} == pytest.approx(smooth, abs=ROUNDING)
    assert name != "adamw" or len(whole[2][2]) < 9, "one stopped early while the others went on"


def test_a_checkpoint_holds_no_neighbours_rows(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, store = STACKS["adamw"][:2], FeatureStore(tmp_path / "store")
    sets = datasets(pictures, variants[0])
    fill(variants[0], sets, store)
    train_side_by_side(variants, sets, store, saves=tmp_path)
    exact = (tmp_path / "0.2.pt").stat().st_size
    monkeypatch.setattr("heads.model.precision.EXACT_DEVICES", ())
    train_side_by_side(variants, sets, store, saves=tmp_path)
    assert (tmp_path / "0.2.pt").stat().st_size < 1.1 * exact


@pytest.mark.parametrize("build", [adamw, sgd])
def test_a_step_of_rows_is_a_step_of_each_optimizer_but_for_rounding(build: Build) -> None:
    alone, optimizers = make(build)
    owned, parts = make(build)
    # In the optimizers' order: those that decay, then the others.
    order = [0, 2, 1, 3]
    columns = RowLayout([torch.Size(SHAPES[number]) for number in order])
    rows = columns.gather([[own[number] for number in order] for own in owned])
    joint, scale = rows_optimizer(parts, columns, rows), torch.tensor(RATES)[:, None]
    for number in range(1, 6):
        gradients = draw(number)
        for own, given, optimizer in zip(alone, gradients, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = optimizer.defaults["lr"] / number
            for weight, gradient in zip(own, given, strict=True):
                weight.grad = gradient
            optimizer.step()
        joint.step(columns.gather([[given[number] for number in order] for given in gradients]), scale / number)
    stacks = columns.split(rows)
    for place in range(NUM):
        for stack, number in zip(stacks, order, strict=True):
            expected = alone[place][number]
            torch.testing.assert_close(stack[place], expected.detach())
            # What is kept belongs to each optimizer, so that it goes into its checkpoint.
            known, wanted = parts[place].state[owned[place][number]], optimizers[place].state[expected]
            assert known.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(known[name], value)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_tally_of_a_stack_is_each_trainings_own(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.fused.stacked_metrics.MAX_PENDING_BYTES", 1000)
    monkeypatch.setattr("heads.fused.stacked_metrics.MAX_SCORES", 1000)
    random = torch.Generator().manual_seed(3)
    joint = StackedMetrics({"x": task}, keeps_scores=True)
    each = [MetricAccumulator({"x": task}, keeps_scores=True) for _ in range(3)]
    for num_samples in (40, 40, 7):
        logits = torch.randn(3, num_samples, 6, generator=random)
        labels = torch.randint(-1, 6, (num_samples,), generator=random)
        if task == "multilabel":
            labels = torch.where((labels < 0)[:, None], -1, torch.randint(0, 2, (num_samples, 6), generator=random))
        weights = (torch.rand(num_samples, generator=random) < 0.9).float()
        losses = [own.add({"x": rows}, {"x": labels}, weights)["x"] for own, rows in zip(each, logits, strict=True)]
        joint.take({"x": logits}, {"x": labels}, weights, {"x": torch.stack(losses)})
    for found, own in zip(joint.totals(), each, strict=True):
        expected = own.totals()["x"]
        assert found["x"].measures == pytest.approx(expected.measures, abs=1e-7)
        assert (found["x"].num_labels, found["x"].confusion) == (expected.num_labels, expected.confusion)
        assert found["x"].thresholds == (expected.thresholds and pytest.approx(expected.thresholds, abs=1e-7))
