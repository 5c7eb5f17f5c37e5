"""Adaptive freezing: what it decides, that it holds, and that it is the same wherever and however often it is asked."""

from pathlib import Path

import pytest
import torch

from heads.model.freezing import apply_phase, parameter_groups
from heads.model.model import build_model
from heads.phases import Phase
from heads.spec import Fit
from heads.training.adaptive import AdaptiveFreezing, Movements
from heads.training.loop import train
from heads.training.state import Epoch
from tests.heads.frozen import frozen_digest
from tests.heads.test_fit_options import assert_resumes
from tests.heads.test_loop import CLASSES, datasets, pictures, run, same, variant_of

__all__ = ["pictures"]
STAGES = ("stem", "layer1", "layer2")
MOVING, STILL = (0.3, 0.3, 0.3), (0.05, 0.05, 0.3)
GOOD, BAD = (0.9, -0.3), (0.8, -0.3)


def told(*epochs: tuple[tuple[float, ...], tuple[float, float]]) -> tuple[AdaptiveFreezing, list[tuple[str, ...]]]:
    freezing = AdaptiveFreezing(STAGES)
    return freezing, [freezing.decide(index, movements, score) for index, (movements, score) in enumerate(epochs)]


def test_nothing_is_frozen_before_it_has_moved_much_less_than_it_did() -> None:
    freezing, decisions = told((MOVING, GOOD), (MOVING, GOOD), ((0.11, 0.01, 0.01), GOOD))
    assert decisions == [(), (), ()], "only from the front"
    assert freezing.num_frozen == 0


def test_stages_that_stopped_moving_are_frozen_from_the_front_with_the_reason() -> None:
    freezing, decisions = told((MOVING, GOOD), (STILL, GOOD))
    assert freezing.num_frozen == 2
    assert [decision.split()[:2] for decision in decisions[1]] == [["freeze", "stem"], ["freeze", "layer1"]]
    assert "after epoch 1" in decisions[1][0]
    assert "moved by 5.000% of their norm, at most a third of the 30.000%" in decisions[1][0]


def test_what_was_frozen_last_is_thawed_where_validation_worsens_twice_in_a_row() -> None:
    frozen = (0.0, 0.0, 0.3)
    freezing, decisions = told((MOVING, GOOD), (STILL, GOOD), (frozen, BAD), (frozen, GOOD), (frozen, BAD))
    assert freezing.num_frozen == 2
    assert decisions[2:] == [(), (), ()]
    freezing, decisions = told((MOVING, GOOD), (STILL, GOOD), (frozen, BAD), (frozen, BAD))
    assert freezing.num_frozen == 0
    (reason,) = decisions[3]
    assert reason.startswith("thaw stem, layer1 after epoch 3: the last 2 epochs validated worse (mean accuracy 0.8000")


def test_a_thawed_stage_is_judged_anew() -> None:
    frozen = (0.0, 0.0, 0.3)
    before = (MOVING, GOOD), (STILL, GOOD), (frozen, BAD), (frozen, BAD)
    freezing, decisions = told(*before, (STILL, GOOD), ((0.01, 0.05, 0.3), GOOD))
    assert decisions[4] == ()
    assert freezing.num_frozen == 1


def test_movements_are_shares_of_the_weights_norm_and_none_for_frozen_stages() -> None:
    model = build_model(variant_of("resnet18", "none", "linear"), CLASSES, None)
    apply_phase(model, Phase(0, 1, 1))
    movements = Movements(model)
    with torch.no_grad():
        for parameter in model.backbone[2].parameters():
            parameter.mul_(1.25)
    assert movements.measure() == (0.0, 0.0, pytest.approx(0.25), 0.0, 0.0)


# Moves less and less, so that stages stop; with BatchNorm and dropout.
SLOWING = {"freeze": "adaptive", "schedule": "step", "epochs": 6, "learning_rate": 0.003, "warmup": 0, "ema": 0.5}


def test_an_adaptive_training_freezes_says_why_and_resumes_to_the_bit_around_it(pictures: Path, tmp_path: Path) -> None:
    first, outcome = assert_resumes(variant_of(**SLOWING), pictures, tmp_path, after=3)
    frozen = [epoch.num_frozen_stages for epoch in outcome.epochs]
    assert frozen[0] == 0
    assert max(frozen) > 0
    decided = [epoch.index for epoch in outcome.epochs if epoch.decisions]
    borders = [index for index in range(5) if frozen[index] != frozen[index + 1]]
    assert decided == borders, "a decision after an epoch holds from the next on"
    assert [epoch.phase for epoch in outcome.epochs] == [sum(b < epoch.index for b in borders) for epoch in outcome.epochs]
    model, second = run(variant_of(**SLOWING), pictures, resume=tmp_path / f"{borders[0]}.pt")
    assert same(model, first)
    assert [epoch.decisions for epoch in second.epochs] == [epoch.decisions for epoch in outcome.epochs]


def test_a_stage_frozen_on_the_way_is_still_from_then_on(pictures: Path) -> None:
    variant = variant_of(**{**SLOWING, "ema": 0.0})
    model = build_model(variant, CLASSES, None)
    digests: dict[int, set[str]] = {}

    def look(epoch: Epoch, _: object) -> None:
        if epoch.num_frozen_stages:
            phase = Phase(0, 1, epoch.num_frozen_stages)
            digests.setdefault(epoch.phase, set()).add(frozen_digest(model, phase))
            trained = {id(p) for group in parameter_groups(model, phase, Fit()) for p in group["params"]}
            assert {id(p) for p in model.parameters() if p.requires_grad} == trained
            assert not any(module.training for stage in model.backbone[: epoch.num_frozen_stages] for module in stage.modules())

    train(model, variant, *datasets(pictures, variant), device="cpu", on_epoch=look)
    assert digests
    assert all(len(found) == 1 for found in digests.values())
