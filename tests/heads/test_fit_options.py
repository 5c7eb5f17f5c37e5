"""Every option of training does what it says and resumes to the bit."""

from pathlib import Path

import pytest
import torch

from heads.errors import HeadsError
from heads.model.freezing import apply_phase
from heads.model.model import Model, build_model
from heads.phases import Phase
from heads.spec import Variant
from heads.training.ema import EMA
from heads.training.state import TrainingOutcome, weights_of
from tests.heads.evaluating import evaluate
from tests.heads.frozen import frozen_digest
from tests.heads.test_loop import CLASSES, datasets, pictures, run, same, variant_of, without_seconds

__all__ = ["pictures"]

# Without BatchNorm and dropout, so that what is equal on paper is equal to rounding.
PLAIN = {"backbone": "squeezenet1_1", "freeze": "none", "design": "linear", "augment": "none", "epochs": 2}
FROZEN_NAMES = ("backbone.stem.", "backbone.layer1.")


def assert_resumes(variant: Variant, pictures: Path, saves: Path, after: int) -> tuple[Model, TrainingOutcome]:
    """Training goes on from epoch `after` to the bits of an uninterrupted one, which comes back."""
    model, outcome = run(variant, pictures, saves=saves)
    torch.manual_seed(after)
    resumed, second = run(variant, pictures, resume=saves / f"{after}.pt")
    assert same(resumed, model)
    assert without_seconds(second) == without_seconds(outcome)
    return model, outcome


def nearly_equal(one: Model, other: Model) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize(("optimizer", "schedule"), [("sgd", "step"), ("adamw", "constant")])
def test_optimizers_and_schedules_learn_and_resume_to_the_bit(
    pictures: Path, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    rate = 0.01 if optimizer == "sgd" else 0.002
    variant = variant_of(epochs=3, optimiser=optimizer, schedule=schedule, learning_rate=rate, warmup=0.2)
    _, outcome = assert_resumes(variant, pictures, tmp_path, after=1)
    assert outcome.epochs[-1].metrics["train/loss"] < outcome.epochs[0].metrics["train/loss"]


def test_a_plateau_lowers_the_rate_and_resumes_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of("squeezenet1_1", "all", "linear", schedule="plateau", learning_rate=0.5, epochs=7, warmup=0)
    _, outcome = assert_resumes(variant, pictures, tmp_path, after=4)
    rates = [epoch.learning_rate for epoch in outcome.epochs]
    assert rates[0] == 0.5
    assert rates[-1] < 0.06


@pytest.mark.parametrize("weights", ["equal", "uncertainty"])
def test_accumulated_batches_train_as_one_batch_so_many_times_larger_does(pictures: Path, weights: str) -> None:
    # 23 images: three groups of three batches of two, and a last one of two and three.
    small = variant_of(**PLAIN, optimiser="sgd", learning_rate=0.05, batch_size=2, accumulate=3, head_weights=weights)
    large = variant_of(**PLAIN, optimiser="sgd", learning_rate=0.05, batch_size=6, head_weights=weights)
    (one, first), (other, second) = run(small, pictures), run(large, pictures)
    assert nearly_equal(one, other)
    assert not nearly_equal(one, build_model(large, CLASSES, None))
    for a, b in zip(first.epochs, second.epochs, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-3)
        assert a.learning_rate == b.learning_rate


def test_accumulation_resumes_to_the_bit_with_batchnorm_too(pictures: Path, tmp_path: Path) -> None:
    assert_resumes(variant_of(batch_size=3, accumulate=4, freeze="none", epochs=3), pictures, tmp_path, after=1)


@pytest.mark.parametrize("settings", [{"freeze": "lp_ft", "optimiser": "sgd"}, {"freeze": "adaptive", "schedule": "step"}])
def test_learned_head_weights_and_mixing_resume_to_the_bit_with_accumulation_and_an_average(
    pictures: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    options = {"head_weights": "uncertainty", "mixup": 0.3, "cutmix": 1, "batch_size": 4, "accumulate": 3, "ema": 0.5}
    variant = variant_of("squeezenet1_1", **settings, **options, epochs=4, warmup=0)
    _, outcome = assert_resumes(variant, pictures, tmp_path, after=2)
    assert outcome.epochs[-1].phase > 0
    weights = [tuple(epoch.metrics[f"train/{target}/head_weight"] for target in CLASSES) for epoch in outcome.epochs]
    assert len(set(weights)) == len(weights)


def test_clipping_bounds_the_step_and_may_be_off(pictures: Path) -> None:
    # Plain steps of SGD's first update: without clipping it is as long as the gradient.
    def moved(clip: float) -> float:
        settings = {**PLAIN, "epochs": 1, "batch_size": 23, "optimiser": "sgd", "schedule": "constant", "warmup": 0}
        variant = variant_of(**settings, gradient_clip=clip, learning_rate=0.01, weight_decay=0)
        before, (after, _) = build_model(variant, CLASSES, None), run(variant, pictures)
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        return torch.stack([(a - b).norm() for a, b in pairs]).norm().item()

    # Nesterov's first step is 1 + momentum times as long.
    assert moved(0.01) == pytest.approx(0.01 * 0.01 * 1.9, rel=1e-2)
    assert moved(0) > 10 * moved(0.01)


def test_an_average_follows_weights_and_statistics_and_copies_counts_and_frozen_stages() -> None:
    model = build_model(variant_of("resnet18", "none", "linear"), CLASSES, None)
    apply_phase(model, Phase(0, 1, 2))
    average, start = EMA(model, 0.6), weights_of(model)
    for number in (0, 1, 50):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        average.update(number)
    found = average.model.state_dict()
    # Forgets by 1/10, 2/11 and then the decay: what is added, 1, 2 and 3, is weighed so.
    expected = ((0.9 * 1) * (2 / 11) + (9 / 11) * 2) * 0.6 + 0.4 * 3
    moved = [name for name in start if start[name].is_floating_point() and not name.startswith(FROZEN_NAMES)]
    assert any("running_var" in name for name in moved)
    for name in moved:
        assert torch.allclose(found[name], start[name] + expected, atol=1e-5), name
    frozen, later = model.backbone[0].state_dict(), average.model.backbone[0].state_dict()
    assert not any(torch.equal(later[name], tensor) for name, tensor in frozen.items()), "frozen stages are copied once"
    average.follow(model)
    assert all(torch.equal(average.model.backbone[0].state_dict()[name], tensor) for name, tensor in frozen.items())
    assert int(found["backbone.layer4.layer4.1.bn2.num_batches_tracked"]) == 3


def test_the_average_is_what_is_evaluated_and_kept_and_it_resumes_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of(ema=0.7, epochs=4)
    model, outcome = assert_resumes(variant, pictures, tmp_path, after=2)
    assert_resumes(variant, pictures, tmp_path, after=0)
    metrics, confusion = evaluate(model, datasets(pictures, variant)[1], device="cpu", batch_size=6)
    assert confusion == outcome.confusion
    assert metrics["kind/loss"] == pytest.approx(outcome.metrics["val/kind/loss"], rel=1e-5)
    plain, _ = run(variant_of(epochs=4), pictures)
    assert not same(model, plain)


def test_with_an_average_a_frozen_backbone_stays_equal_to_the_bit(pictures: Path) -> None:
    variant = variant_of(freeze="upto:stage2", epochs=1, ema=0.9)
    before = frozen_digest(build_model(variant, CLASSES, None), Phase(0, 1, 3))
    assert frozen_digest(run(variant, pictures)[0], Phase(0, 1, 3)) == before


def test_float16_is_refused_without_a_gpu(pictures: Path) -> None:
    with pytest.raises(HeadsError, match="precision fp16 needs a CUDA GPU, but this is cpu; use auto, fp32 or bf16"):
        run(variant_of(precision="fp16"), pictures)


def test_channels_first_trains_the_same_to_rounding(pictures: Path) -> None:
    settings = {**PLAIN, "epochs": 1, "optimiser": "sgd"}
    (one, _), (other, _) = (run(variant_of(**settings, channels_last=last), pictures) for last in (False, True))
    assert nearly_equal(one, other)
    assert next(one.parameters()).is_contiguous()
