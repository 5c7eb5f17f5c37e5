"""Training from the feature store on a GPU: against images, side by side against alone; extraction in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heads.catalogue import Task
from heads.features import FeatureStore, Key
from heads.fused.stacked_metrics import StackedMetrics
from heads.model.model import build_backbone
from heads.phases import Tap
from heads.spec import Variant
from heads.training.compile_payback import CompileCase, CompileTimes
from heads.training.metrics import MetricAccumulator
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.forward import MIN_BATCHES, Forward, run_stages
from heads.trunks.stored import open_views
from tests.gpu.nearness import assert_near
from tests.heads.stored_training import (
    CPU,
    KIND,
    LABELS,
    LINEAR,
    NUM_TRAIN,
    NUM_VAL,
    POLICIES,
    datasets,
    distance,
    fill,
    loaders_of,
    pictures,
    run,
    train_side_by_side,
    trunks_of,
    variant_of,
)

__all__ = ["pictures"]

# Loader processes are forked beside CUDA's threads; the compiler advises TF32 for products, and loads a part that is deprecated.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (".*use of fork", "TensorFloat32 tensor cores", ".*script_method. is deprecated")
]

GPU = torch.device("cuda")
# Features of the same picture differ by TF32's rounding (5e-4 of a product), which variances of small batches in deep stages
# carry furthest: 8.5e-3 of a weight on an H100, 2e-4 without such stages.
OF_FEATURES = 3e-2
# Heads are float32 throughout where that is asked for (4e-6 on an H100, most of them 1e-8); bfloat16 has 8 bits.
OF_HEADS, OF_BFLOAT16 = 2e-5, 1e-3
FLOAT32: dict[str, Any] = {"precision": "fp32", "mlp_dropout": 0.0}
STACKS = {
    "adamw": [
        variant_of(KIND, learning_rate=0.01, **FLOAT32),
        variant_of(KIND, learning_rate=0.002, weight_decay=0.1, gradient_clip=0.1, schedule="step", **FLOAT32),
        variant_of(KIND, learning_rate=0.01, epochs=9, patience=1, schedule="plateau", **FLOAT32),
    ],
    "sgd, averages and two targets": [
        variant_of(LINEAR, LABELS, optimiser="sgd", learning_rate=x, ema=x * 30, accumulate=2, weight_decay=0.1, precision="fp32")
        for x in (0.01, 0.03)
    ],
    "labels": [
        variant_of(LABELS, loss="focal", class_weights="balanced", label_smoothing=0.1, learning_rate=x, precision="fp32")
        for x in (0.01, 0.003)
    ],
    "bfloat16": [variant_of(KIND, learning_rate=x, mlp_dropout=0.0, precision="bf16") for x in (0.01, 0.003)],
}


@pytest.mark.parametrize("name", POLICIES)
def test_training_from_the_store_gives_what_training_from_images_gives(name: str, pictures: Path, tmp_path: Path) -> None:
    fit = POLICIES[name].fit.model_copy(
        update={"precision": "fp32", "mlp_dropout": 0.0, "epochs": min(3, POLICIES[name].fit.epochs)}
    )
    variant, store = POLICIES[name].model_copy(update={"fit": fit}), FeatureStore(tmp_path)
    sets = datasets(pictures, variant)
    assert fill(variant, sets, store, GPU) == NUM_TRAIN + NUM_VAL
    assert fill(variant, sets, store, GPU) == 0
    from_images, expected = run(variant, sets, device=GPU, num_loader_workers=0)
    from_store, found = run(variant, sets, loaders_of(variant, sets, store, GPU), device=GPU, num_loader_workers=0)
    assert_near(f"store, {name}", distance(from_images, from_store), OF_FEATURES)
    assert found.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=10 * OF_FEATURES)


@pytest.mark.parametrize("name", STACKS)
def test_heads_in_a_stack_end_and_resume_as_each_does_alone(name: str, pictures: Path, tmp_path: Path) -> None:
    variants: list[Variant] = STACKS[name]
    sets, store = datasets(pictures, variants[0]), FeatureStore(tmp_path / "store")
    fill(variants[0], sets, store, GPU)
    tolerance = OF_BFLOAT16 if name == "bfloat16" else OF_HEADS
    whole = train_side_by_side(variants, sets, store, saves=tmp_path, device=GPU)
    resumed = train_side_by_side(variants, sets, store, resume={0: tmp_path / "0.1.pt"}, device=GPU)
    for variant, (model, end, told), (again, _, _) in zip(variants, whole, resumed, strict=True):
        alone, expected = run(variant, sets, loaders_of(variant, sets, store, GPU), device=GPU)
        assert isinstance(end, TrainingOutcome)
        assert_near(f"stack, {name}", distance(alone, model), tolerance)
        assert_near(f"stack resumed, {name}", distance(model, again), tolerance)
        assert (len(told), end.best_epoch, end.ended) == (len(expected.epochs), expected.best_epoch, expected.ended)
        assert end.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=tolerance)


def test_neighbours_in_a_stack_draw_the_dropout_of_a_head_alone(pictures: Path, tmp_path: Path) -> None:
    variants = [variant_of(KIND, learning_rate=rate, mlp_dropout=0.5, precision="fp32") for rate in (0.01, 0.003, 0.001)]
    sets, store = datasets(pictures, variants[0]), FeatureStore(tmp_path)
    fill(variants[0], sets, store, GPU)
    together = train_side_by_side(variants, sets, store, device=GPU)
    for variant, (model, _, _) in zip(variants, together, strict=True):
        ((alone, _, _),) = train_side_by_side([variant], sets, store, device=GPU)
        assert_near("dropout", distance(alone, model), OF_HEADS)


class Told:
    """Says that compiling is free and halves a step, and keeps what was measured."""

    def __init__(self) -> None:
        self.measured: list[tuple[CompileCase, CompileTimes]] = []

    def read(self, case: CompileCase) -> CompileTimes:
        return CompileTimes(0.0, 1.0, 0.5)

    def write(self, case: CompileCase, times: CompileTimes) -> None:
        self.measured.append((case, times))


def test_a_compiled_head_and_a_float16_one_train_as_a_plain_one(pictures: Path, tmp_path: Path) -> None:
    store, told = FeatureStore(tmp_path), Told()
    models = {}
    for name, own in {"plain": {}, "compiled": {"compile": True}, "float16": {"precision": "fp16"}}.items():
        variant = variant_of(LINEAR, **{"precision": "fp32", "optimiser": "sgd", "epochs": 6, **own})
        sets = datasets(pictures, variant)
        fill(variant, sets, store, GPU)
        models[name], outcome = run(
            variant, sets, loaders_of(variant, sets, store, GPU), device=GPU, compile_records=told if own else None
        )
        assert [epoch.is_compiled for epoch in outcome.epochs] == [True if name == "compiled" else None] * 6
    assert_near("compiled", distance(models["plain"], models["compiled"]), OF_HEADS)
    assert_near("float16", distance(models["plain"], models["float16"]), OF_FEATURES)
    ((case, times),) = told.measured
    assert case.device == torch.cuda.get_device_name(GPU)
    assert times.compile_seconds > 10 * times.compiled_step_seconds


def test_features_do_not_depend_on_what_else_is_in_their_batch(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of(KIND, backbone="mobilenet_v2", precision="fp32")
    sets, taps = datasets(pictures, variant), {Tap(variant.num_stages - 1, "pooled"), Tap(3, "map")}
    trunk, stages = trunks_of(variant, GPU)[0], build_backbone(variant, None).eval().requires_grad_(False).to(GPU)
    found = []
    for name, order in (("val first", (sets[1], sets[0])), ("val last", (sets[0], sets[1])), ("val alone", (sets[1],))):
        store = FeatureStore(tmp_path / name)
        wanted = [ExtractionRequest(images, 0, taps) for images in order]
        extract(lambda: stages, trunk, wanted, store, device=GPU, precision="fp32")
        (view,) = open_views(store, [trunk], sorted(taps), sets[1].digests, CPU, shuffled=False)
        found.append(view[torch.arange(NUM_VAL)])
    for other in found[1:]:
        for tap, rows in found[0].items():
            gap = ((rows - other[tap]).abs().max() / rows.abs().max()).item()
            assert_near(f"features beside others, {tap}", gap, 1e-3)


class Halved(nn.Module):
    """Does as its values say, for which the host has to wait: it cannot be captured."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features / 2 if features.mean().item() > 0 else features


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("last", [nn.Identity(), Halved()])
def test_a_captured_pass_gives_what_the_pass_gives(last: nn.Module, precision: Any) -> None:
    variant = variant_of(KIND, backbone="mobilenet_v2")
    backbone = build_backbone(variant, None).eval().requires_grad_(False)
    stages = nn.Sequential(*backbone, last).to(GPU, memory_format=torch.channels_last)
    taps = (Tap(3, "map"), Tap(len(stages) - 1, "pooled"))
    forward = Forward(stages, taps, precision, MIN_BATCHES)
    found = []
    for number, size in enumerate((8, 8, 8, 5, 8)):
        samples = torch.randn(size, 3, 64, 64, device=GPU).to(memory_format=torch.channels_last) + number
        found.append((forward(samples), run_stages(stages, taps, precision, samples)))
    torch.cuda.synchronize()
    assert (forward._graph is None) == isinstance(last, Halved)
    assert hasattr(torch._C, "_cuda_endAllocateToPool"), "heads.trunks.forward ends a failed capture by it"
    torch.nn.functional.dropout(torch.ones(8, device=GPU))  # also after a capture that failed
    forward.close()
    for features, expected in found:
        for tap, rows in expected.items():
            gap = ((features[tap].to(GPU) - rows).abs().max() / rows.abs().max()).item()
            assert_near(f"captured, {precision}, {tap}", gap, 1e-2 if precision == "bf16" else 1e-3)


class Wide(nn.Module):
    """Takes 64 MiB a sample while it runs."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + features.new_ones(len(features), 2**24)[:, :1, None, None]


def test_a_batch_that_finds_no_room_on_the_gpu_runs_in_parts() -> None:
    samples = torch.randn(16, 3, 4, 4, device=GPU)
    torch.cuda.empty_cache()
    total, used = torch.cuda.get_device_properties(GPU).total_memory, torch.cuda.memory_reserved(GPU)
    torch.cuda.set_per_process_memory_fraction((used + 2**29) / total, GPU)
    try:
        forward = Forward(nn.Sequential(Wide()), (Tap(0, "map"),), "fp32", 2 * MIN_BATCHES)
        found = [forward(samples + number)["0:map"] for number in range(2)]
        torch.cuda.synchronize()
        forward.close()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
        torch.cuda.empty_cache()
    assert forward._num_parts > 1
    assert all(torch.equal(rows, (samples + number + 1).cpu()) for number, rows in enumerate(found))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_measures_of_a_stack_are_those_of_each_on_the_cpu(task: Task) -> None:
    random = torch.Generator().manual_seed(3)
    joint, each = (
        StackedMetrics({"x": task}, keeps_scores=True),
        [MetricAccumulator({"x": task}, keeps_scores=True) for _ in range(3)],
    )
    for num_samples in (400, 77):
        logits, weights = torch.randn(3, num_samples, 7, generator=random), torch.ones(num_samples)
        labels = torch.randint(-1, 7, (num_samples,), generator=random)
        if task == "multilabel":
            labels = torch.where((labels < 0)[:, None], -1, torch.randint(0, 2, (num_samples, 7), generator=random))
        losses = torch.stack([own.add({"x": rows}, {"x": labels}, weights)["x"] for own, rows in zip(each, logits, strict=True)])
        joint.take({"x": logits.to(GPU)}, {"x": labels.to(GPU)}, weights.to(GPU), {"x": losses.to(GPU)})
    for own, total in zip(each, joint.totals(), strict=True):
        expected = own.totals()["x"]
        assert total["x"].measures == pytest.approx(expected.measures, abs=1e-4)
        assert total["x"].temperature == pytest.approx(expected.temperature, rel=1e-3)
        assert (total["x"].num_labels, total["x"].confusion) == (expected.num_labels, expected.confusion)


def test_keys_of_the_store_hold_what_the_gpu_gave(pictures: Path, tmp_path: Path) -> None:
    variant, store = variant_of(LINEAR, precision="fp32"), FeatureStore(tmp_path)
    sets, tap = datasets(pictures, variant), Tap(variant_of(LINEAR).num_stages - 1, "pooled")
    fill(variant, sets, store, GPU)
    stages = build_backbone(variant, None).eval()
    with torch.no_grad():
        expected = stages(torch.stack([sets[1][index][0] for index in range(NUM_VAL)])).mean(dim=(2, 3))
    keys = [Key(digest, 0) for digest in sets[1].digests]
    found = store.trunk(trunks_of(variant, GPU)[0].id).open(keys, [tap.name])[torch.arange(NUM_VAL)][tap.name].flatten(1)
    gap = ((found - expected).abs().max() / expected.abs().max()).item()
    assert_near("features on a CPU", gap, 5e-3)
