"""Training on a GPU: every freeze policy resumes, what is frozen is still, every kind of head learns, a bundle tells the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads import bundle
from heads.data.inputs import of_images
from heads.model.freezing import apply_phase
from heads.model.model import Model, build_model
from heads.phases import Phase
from heads.spec import Head, Variant
from heads.tasks.answers import Labels, MaskPrediction, Prediction
from heads.training.state import Epoch
from tests.gpu.nearness import assert_near
from tests.heads.frozen import frozen_digest
from tests.heads.stored_training import CLASSES, KIND, MASK, NUM_VAL, TAGS, datasets, distance, pictures, run, variant_of

__all__ = ["pictures"]

# Loader processes are forked beside CUDA's threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork")

GPU = torch.device("cuda")
# A few steps of plain descent: from one run to the next in float32 (TF32), and in half precision. On an H100 none differed; which
# kernels are taken, and whether they add up atomically, is cuDNN's choice.
OF_RUNS, OF_HALF = 1e-4, 1e-3
# Logits and probabilities of one image on two devices: 2e-4 on an H100, by TF32.
OF_DEVICES = 2e-3
GENTLE: dict[str, Any] = {"optimiser": "sgd", "precision": "fp32"}
RESUMED = {
    "none": variant_of(KIND, freeze="none", **GENTLE),
    "all": variant_of(KIND, TAGS, **GENTLE),
    "lp_ft with an average": variant_of(KIND, freeze="lp_ft", ema=0.5, **GENTLE),
    "gradual, batches accumulated": variant_of(
        KIND, backbone="squeezenet1_1", freeze="gradual", epochs=4, accumulate=2, **GENTLE
    ),
    "adaptive": variant_of(KIND, freeze="adaptive", **GENTLE),
    "upto in float16": variant_of(KIND, freeze="upto:stage3", **{**GENTLE, "precision": "fp16"}),
    "bfloat16, mixed and weighed": variant_of(
        KIND, TAGS, freeze="none", mixup=0.3, cutmix=1, head_weights="uncertainty", **{**GENTLE, "precision": "bf16"}
    ),
}
DESIGNS = [("lraspp", "linear"), ("unet", "mlp"), ("fpn", "attention"), ("fcn", "cosine"), ("deeplabv3", "linear")]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_ends_as_an_uninterrupted_one(name: str, pictures: Path, tmp_path: Path) -> None:
    variant: Variant = RESUMED[name]
    sets = datasets(pictures, variant)

    def keep(epoch: Epoch, save: Any) -> None:
        save(tmp_path / f"{epoch.index}.pt")

    whole, expected = run(variant, sets, device=GPU, num_loader_workers=0, on_epoch=keep)
    again, found = run(variant, sets, device=GPU, num_loader_workers=0, resume=tmp_path / "0.pt")
    half = variant.fit.precision in ("fp16", "bf16")
    assert_near(f"resumed, {name}", distance(whole, again), OF_HALF if half else OF_RUNS)
    assert [epoch.learning_rate for epoch in found.epochs] == [epoch.learning_rate for epoch in expected.epochs]
    assert [epoch.num_frozen_stages for epoch in found.epochs] == [epoch.num_frozen_stages for epoch in expected.epochs]
    assert all(math.isfinite(epoch.metrics["train/loss"]) for epoch in expected.epochs)


@pytest.mark.parametrize(("backbone", "freeze"), [("mobilenet_v3_small", "upto:stage3"), ("efficientnet_b0", "all")])
def test_what_is_frozen_stays_as_it_is_to_the_bit_and_drops_nothing(backbone: str, freeze: str, pictures: Path) -> None:
    variant = variant_of(KIND, backbone=backbone, freeze=freeze, epochs=2, ema=0.5)
    sets, phase = datasets(pictures, variant), Phase(0, 2, 4 if freeze == "upto:stage3" else variant.num_stages)
    before = frozen_digest(build_model(variant, CLASSES, None), phase)
    trained, _ = run(variant, sets, device=GPU, num_loader_workers=0)
    assert frozen_digest(trained, phase) == before
    apply_phase(trained, phase)
    trained.train()
    images = torch.stack([sets[1][index][0] for index in range(NUM_VAL)]).to(GPU)
    with torch.no_grad():
        first, second = (trained.backbone[: phase.num_frozen_stages](images) for _ in range(2))
    assert torch.equal(first, second), "neither dropout nor stochastic depth"
    assert frozen_digest(trained, phase) == before


@pytest.mark.parametrize(("of_masks", "of_classes"), DESIGNS)
def test_every_kind_of_head_tells_the_same_as_on_a_cpu_and_learns(of_masks: str, of_classes: str, pictures: Path) -> None:
    heads = (MASK.model_copy(update={"design": of_masks}), Head(target="kind", design=of_classes), TAGS)
    variant = variant_of(*heads, freeze="none", epochs=3, loss="cross_entropy_dice")
    sets = datasets(pictures, variant)
    images = torch.stack([sets[1][index][0] for index in range(NUM_VAL)])
    trained, outcome = run(variant, sets, device=GPU, num_loader_workers=0)
    with torch.no_grad():
        on_gpu = {target: logits.cpu() for target, logits in trained.eval()(of_images(images.to(GPU))).items()}
        on_cpu = trained.to("cpu")(of_images(images))
    for target, logits in on_cpu.items():
        gap = (logits - on_gpu[target]).abs().max() / logits.abs().max().clamp(min=1)
        assert_near(f"logits on a CPU, {of_masks}, {of_classes}, {target}", gap.item(), OF_DEVICES)
    assert outcome.epochs[-1].metrics["train/loss"] < outcome.epochs[0].metrics["train/loss"]


def test_a_bundle_predicts_alike_on_both_devices(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of(MASK, KIND, TAGS, freeze="none", epochs=4)
    sets = datasets(pictures, variant)
    model, outcome = run(variant, sets, device=GPU, num_loader_workers=0)
    bundle.save(
        tmp_path / "bundle",
        model=model,
        variant=variant,
        classes=CLASSES,
        preprocess=sets[0].preprocess,
        facts={"data_version": "none", "weights_digest": "none", "metrics": {}},
        thresholds=outcome.thresholds,
        temperatures=outcome.temperatures,
    )
    files = [str(path) for path in sets[1].paths]
    by_device = [bundle.load(tmp_path / "bundle", device).predict(files) for device in ("cpu", GPU)]
    for one, other in zip(*by_device, strict=True):
        for target, answer in one.items():
            twin = other[target]
            if isinstance(answer, MaskPrediction):
                assert isinstance(twin, MaskPrediction)
                assert_near("a bundle's pixels", float((answer.mask != twin.mask).mean()), 1e-2)
            else:
                assert isinstance(answer, Prediction | Labels)
                assert isinstance(twin, Prediction | Labels)
                gaps = [abs(value - twin.probabilities[name]) for name, value in answer.probabilities.items()]
                assert_near("a bundle's probabilities", max(gaps), OF_DEVICES)


@pytest.fixture
def _group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1, device_id=torch.device("cuda:0")
    )
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def without_a_group(pictures: Path) -> Model:
    variant = RESUMED["lp_ft with an average"]
    return run(variant, datasets(pictures, variant), device=GPU, num_loader_workers=0)[0]


@pytest.mark.usefixtures("_group_of_one")
def test_a_group_of_one_over_nccl_trains_as_a_process_alone(without_a_group: Model, pictures: Path) -> None:
    variant = RESUMED["lp_ft with an average"]
    sums: Tensor = torch.ones(3, device=GPU)
    dist.all_reduce(sums)
    assert sums.tolist() == [1, 1, 1]
    model, _ = run(variant, datasets(pictures, variant), device=GPU, num_loader_workers=0)
    assert_near("a group of one", distance(without_a_group, model), OF_RUNS)
