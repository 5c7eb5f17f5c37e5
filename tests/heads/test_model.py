"""The contract of every backbone, head design and freeze policy, and what holds for models as such."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads.catalogue import BACKBONE_STAGES, HEAD_DESIGNS, IMAGE_BACKBONES, IMAGE_SIZES
from heads.model.freezing import apply_phase, parameter_groups
from heads.model.model import Model, build_model, count_parameters
from heads.phases import Phase, compile_policy
from heads.spec import Fit, Head, Variant
from heads.training.metrics import MetricAccumulator
from tests.heads.frozen import frozen_digest

POLICIES = ("none", "all", "upto", "gradual", "lp_ft")
HEADS = (
    Head(target="label", design="mlp"),
    Head(target="kind.of", design="linear"),
    Head(target="look", design="attention"),
    Head(target="like", design="cosine"),
    Head(target="tags", task="multilabel", design="linear"),
    Head(target="mask", task="segmentation", design="lraspp"),
    Head(target="outline", task="segmentation", design="fpn"),
)
CLASSES = {
    "label": ("a", "b", "c"),
    "kind.of": ("x", "y"),
    "look": ("x", "y"),
    "like": ("x", "y", "z"),
    "tags": ("red", "round", "ripe"),
    "mask": ("0", "1", "7"),
    "outline": ("0", "255"),
}
DENSE = {"mask", "outline"}


def variant_of(backbone: str, freeze: str = "none", seed: int = 0) -> Variant:
    stages = BACKBONE_STAGES[backbone]
    freeze = f"upto:{stages[len(stages) // 2]}" if freeze == "upto" else freeze
    return Variant(backbone=backbone, heads=HEADS, freeze=freeze, fit=Fit(epochs=6, seed=seed))


def test_the_contract_covers_every_kind_of_head_and_every_design_of_classes() -> None:
    assert {head.task for head in HEADS} == set(HEAD_DESIGNS) - {"tagging"}, "tags are of texts alone"
    assert {head.design for head in HEADS if head.task == "classification"} == set(HEAD_DESIGNS["classification"])


def images_of(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=list(IMAGE_BACKBONES))
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(backbone: str) -> Model:
    """A backbone with a head of every design: one target each."""
    return build_model(variant_of(backbone), CLASSES, None)


def images_beyond_least(backbone: str) -> Tensor:
    """Images neither square nor even where patches allow it; of more positions than one, or attention had nothing to learn."""
    least, most, step = IMAGE_SIZES[backbone]
    if least == most:
        return images_of(least, least)
    return images_of(least + 13, least + 35) if step == 1 else images_of(least, least + step)


@pytest.mark.parametrize("is_least", [True, False])
def test_logits_have_one_row_an_image_and_one_column_a_class(model: Model, backbone: str, is_least: bool) -> None:
    least = IMAGE_SIZES[backbone].least
    images = images_of(least, least) if is_least else images_beyond_least(backbone)
    apply_phase(model.eval(), Phase(0, 1, 0))
    with torch.no_grad():
        logits = model(images)
        alone = model(images[:1])
    size = tuple(images.shape[-2:])
    shapes = {target: (2, len(names), *(size if target in DENSE else ())) for target, names in CLASSES.items()}
    assert {target: tuple(found.shape) for target, found in logits.items()} == shapes
    for target, found in logits.items():
        # Masks are read from features as loud as a random backbone leaves them: rounding grows with them.
        loudness = max(1.0, found.abs().max().item())
        torch.testing.assert_close(alone[target], found[:1], atol=1e-5 * loudness, rtol=1e-4)


def test_only_what_is_due_gets_gradients_whatever_the_policy(model: Model, backbone: str) -> None:
    variants = [variant_of(backbone, policy) for policy in POLICIES]
    # Policies share phases: each length of the frozen prefix is tried once.
    phases = {phase.num_frozen_stages: (v, phase) for v in variants for phase in _first_and_last(compile_policy(v))}
    assert phases.keys() >= {0, len(BACKBONE_STAGES[backbone])}
    assert len(phases) >= 3
    for variant, phase in phases.values():
        apply_phase(model, phase)
        # Plain descent: AdamW's state of the large networks would cost more time than all else here.
        optimizer = torch.optim.SGD(parameter_groups(model, phase, variant.fit))
        before, heads_before = frozen_digest(model, phase), _copies(model.heads)
        _step(model, optimizer, images_beyond_least(backbone))
        assert frozen_digest(model, phase) == before
        frozen, thawed = model.backbone[: phase.num_frozen_stages], model.backbone[phase.num_frozen_stages :]
        assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
        assert all(p.grad is not None for p in chain(thawed.parameters(), model.heads.parameters()))
        assert all(bool(p.grad.any()) for p in model.heads.parameters() if p.grad is not None)
        assert any(not torch.equal(old, new) for old, new in zip(heads_before, model.heads.parameters(), strict=True))


def _first_and_last(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    return phases if len(phases) == 1 else (phases[0], phases[-1])


def _copies(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def _step(model: Model, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    logits = model(images)
    labels = {target: torch.tensor([0, len(names) - 1]) for target, names in CLASSES.items()}
    labels["tags"] = torch.tensor([[1, 0, 1], [0, 1, 1]])
    for target in DENSE:
        labels[target] = torch.arange(images[:, 0].numel()).reshape(images[:, 0].shape) % len(CLASSES[target])
    losses = MetricAccumulator(model.tasks).add(logits, labels, torch.ones(2))
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def equal_states(one: Model, other: Model) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_model_is_equal_wherever_it_is_built_and_leaves_the_random_state_alone() -> None:
    variant = variant_of("squeezenet1_1", seed=7)
    torch.manual_seed(1)
    one = build_model(variant, CLASSES, None)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert equal_states(one, build_model(variant, CLASSES, None))


def test_another_seed_makes_another_model() -> None:
    one, other = (build_model(variant_of("squeezenet1_1", seed=seed), CLASSES, None) for seed in (0, 1))
    assert not torch.equal(one.backbone[0][0].weight, other.backbone[0][0].weight)
    assert not torch.equal(one.heads["head0"][-1].weight, other.heads["head0"][-1].weight)


def test_a_head_starts_the_same_beside_other_heads_and_on_given_weights(tmp_path: Path) -> None:
    two = variant_of("squeezenet1_1")
    alone = two.model_copy(update={"heads": two.heads[1:2]})
    file = tmp_path / "weights.pth"
    state = build_model(two, CLASSES, None).backbone.state_dict()
    torch.save({f"features.{key.partition('.')[2]}": torch.ones_like(value) for key, value in state.items()}, file)
    beside, by_itself = build_model(two, CLASSES, None), build_model(alone, CLASSES, file)
    assert torch.equal(beside.heads["head1"][-1].weight, by_itself.heads["head0"][-1].weight)
    assert by_itself.backbone[0][0].weight.unique().item() == 1


@pytest.mark.parametrize("target", ["kind.of", "keys", "", "a/b c", "größe", "training"])
def test_a_target_may_hold_any_characters(target: str) -> None:
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target=target),))
    model = build_model(variant, {target: ("a", "b")}, None)
    assert list(model.eval()(images_of(32, 32))) == [target]
    assert model.targets == (target,)


def test_parameters_are_counted_in_all_and_trained() -> None:
    variant = variant_of("resnet18").model_copy(update={"heads": HEADS[:4]})
    model = build_model(variant, CLASSES, None)
    mlp, linear, attention, cosine = (512 * 256 + 256) + (256 * 3 + 3), 512 * 2 + 2, 512 + 512 * 2 + 2, 512 * 3 + 1
    backbone, heads = 11_176_512, mlp + linear + attention + cosine
    assert count_parameters(model) == (backbone + heads, backbone + heads)
    apply_phase(model, Phase(0, 1, 5))
    assert count_parameters(model) == (backbone + heads, heads)
