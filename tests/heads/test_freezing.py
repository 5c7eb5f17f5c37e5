import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heads.catalogue import BACKBONE_STAGES
from heads.model.freezing import apply_phase, parameter_groups
from heads.model.model import Model, build_model, count_parameters
from heads.phases import Phase, compile_policy
from heads.spec import Fit, Head, Variant
from tests.heads.frozen import frozen_digest

CLASSES = {"label": ("a", "b", "c")}
NUM_STAGES = len(BACKBONE_STAGES["mobilenet_v3_small"])


def variant_of(freeze: str, epochs: int = 10, backbone: str = "mobilenet_v3_small") -> Variant:
    return Variant(backbone=backbone, heads=(Head(target="label"),), freeze=freeze, fit=Fit(epochs=epochs))


@pytest.fixture
def model() -> Model:
    return build_model(variant_of("none"), CLASSES, None)


def train_steps(model: Model, phase: Phase, fit: Fit, num_steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, phase, fit))
    model.train()
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32))["label"].square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("freeze", "epochs", "expected"),
    [
        ("none", 10, [Phase(0, 10, 0)]),
        ("all", 10, [Phase(0, 10, NUM_STAGES)]),
        ("upto:stem", 10, [Phase(0, 10, 1)]),
        ("upto:stage2", 10, [Phase(0, 10, 3)]),
        ("upto:top", 1, [Phase(0, 1, NUM_STAGES)]),
        ("lp_ft", 10, [Phase(0, 3, NUM_STAGES), Phase(3, 7, 0, 0.1)]),
        ("lp_ft", 2, [Phase(0, 1, NUM_STAGES), Phase(1, 1, 0, 0.1)]),
        ("lp_ft", 1, [Phase(0, 1, NUM_STAGES)]),
        ("gradual", 3, [Phase(0, 1, 6), Phase(1, 1, 5), Phase(2, 1, 4)]),
        ("gradual", 15, [*(Phase(2 * i, 2, 6 - i) for i in range(6)), Phase(12, 3, 0)]),
    ],
)
def test_a_policy_compiles_to_its_phases(freeze: str, epochs: int, expected: list[Phase]) -> None:
    assert list(compile_policy(variant_of(freeze, epochs))) == expected


@given(
    backbone=st.sampled_from(list(BACKBONE_STAGES)),
    freeze=st.sampled_from(["none", "all", "upto", "gradual", "lp_ft"]),
    epochs=st.integers(1, 60),
)
def test_phases_cover_every_epoch_once_and_only_thaw(backbone: str, freeze: str, epochs: int) -> None:
    policy = f"upto:{BACKBONE_STAGES[backbone][0]}" if freeze == "upto" else freeze
    phases = compile_policy(variant_of(policy, epochs, backbone))
    covered = [epoch for phase in phases for epoch in range(phase.first_epoch, phase.first_epoch + phase.num_epochs)]
    assert covered == list(range(epochs))
    frozen = [phase.num_frozen_stages for phase in phases]
    assert frozen == sorted(frozen, reverse=True)
    assert all(phase.num_epochs > 0 for phase in phases)
    assert all(0 <= count <= len(BACKBONE_STAGES[backbone]) for count in frozen)


def test_a_frozen_batchnorm_keeps_its_statistics(model: Model) -> None:
    phase = Phase(0, 1, NUM_STAGES)
    apply_phase(model, phase)
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    train_steps(model, phase, Fit())
    assert all(torch.equal(before[name], buffer) for name, buffer in model.backbone.named_buffers())


def test_train_leaves_frozen_stages_in_eval_mode_and_the_rest_in_train_mode(model: Model) -> None:
    apply_phase(model, Phase(0, 1, 3))
    model.eval()
    model.train()
    modes = [{module.training for module in stage.modules()} for stage in model.backbone]
    assert modes == [{False}] * 3 + [{True}] * (NUM_STAGES - 3)
    assert model.heads.training
    assert model.training


def test_frozen_stages_stay_in_eval_mode_inside_a_wrapper(model: Model) -> None:
    apply_phase(model, Phase(0, 1, 2))
    wrapper = nn.Sequential(model).train()
    assert not any(module.training for module in model.backbone[0].modules())
    assert wrapper.training


def test_thawing_restores_train_mode_gradients_and_statistics(model: Model) -> None:
    apply_phase(model, Phase(0, 1, NUM_STAGES))
    thawed = Phase(1, 1, 0)
    apply_phase(model, thawed)
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    train_steps(model, thawed, Fit())
    assert all(module.training for module in model.modules())
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.backbone.named_buffers())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_freezing_drops_gradients_that_are_left_over(model: Model) -> None:
    train_steps(model, Phase(0, 1, 0), Fit())
    apply_phase(model, Phase(1, 1, 4))
    assert all(parameter.grad is None for stage in model.backbone[:4] for parameter in stage.parameters())
    assert all(parameter.grad is not None for stage in model.backbone[4:] for parameter in stage.parameters())


def test_applying_a_phase_in_eval_mode_keeps_eval_mode(model: Model) -> None:
    model.eval()
    apply_phase(model, Phase(0, 1, 2))
    assert not any(module.training for module in model.modules())


def test_a_thawed_backbone_moves_at_its_own_rate(model: Model) -> None:
    phase = Phase(1, 1, 0, backbone_rate_factor=0.1)
    apply_phase(model, phase)
    rates = {id(p): group["lr"] for group in parameter_groups(model, phase, Fit(learning_rate=0.01)) for p in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.01 * 0.1}
    assert {rates[id(p)] for p in model.heads.parameters()} == {0.01}


def test_with_stage_decay_each_stage_learns_at_that_factor_of_the_next_ones_rate(model: Model) -> None:
    fit, phase = Fit(learning_rate=0.01, stage_decay=0.5), Phase(1, 1, 2, backbone_rate_factor=0.1)
    apply_phase(model, phase)
    groups = parameter_groups(model, phase, fit)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = [{rates[id(p)] for p in stage.parameters()} for stage in list(model.backbone)[2:]]
    assert found == [{0.01 * 0.1 * 0.5**distance} for distance in (3, 2, 1, 0)]
    assert {rates[id(p)] for p in model.heads.parameters()} == {0.01}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert set(rates) == {id(p) for p in model.parameters() if p.requires_grad}


def test_stages_that_learn_alike_share_their_groups(model: Model) -> None:
    assert len(parameter_groups(model, Phase(0, 1, 0), Fit())) == 4


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "convnext_tiny", "vit_b_32"])
def test_only_weight_matrices_and_filters_decay(backbone: str) -> None:
    model = build_model(variant_of("none", backbone=backbone), CLASSES, None)
    phase = Phase(0, 1, 0)
    groups = parameter_groups(model, phase, Fit(weight_decay=0.05))
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.05 for p in group["params"]}
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    expected |= {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    assert decayed == expected
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one_in_any(model: Model) -> None:
    for num_frozen in range(NUM_STAGES + 1):
        phase = Phase(0, 1, num_frozen)
        apply_phase(model, phase)
        grouped = [p for group in parameter_groups(model, phase, Fit()) for p in group["params"]]
        assert len({id(p) for p in grouped}) == len(grouped)
        assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
        assert count_parameters(model)[1] == sum(p.numel() for p in grouped)


def test_the_frozen_digest_sees_parameters_and_buffers_of_frozen_stages_alone(model: Model) -> None:
    phase = Phase(0, 1, 2)
    digest = frozen_digest(model, phase)
    with torch.no_grad():
        next(model.backbone[2].parameters()).add_(1)
    assert frozen_digest(model, phase) == digest
    norm = next(module for module in model.backbone[1].modules() if isinstance(module, nn.BatchNorm2d))
    for tensor in (norm.weight, norm.running_mean, norm.num_batches_tracked):
        assert tensor is not None
        before = frozen_digest(model, phase)
        with torch.no_grad():
            tensor.add_(1)
        assert frozen_digest(model, phase) != before


def test_the_frozen_digest_is_the_same_for_equal_models() -> None:
    one, other = (build_model(variant_of("all"), CLASSES, None) for _ in range(2))
    phase = Phase(0, 1, NUM_STAGES)
    assert frozen_digest(one, phase) == frozen_digest(other, phase)
