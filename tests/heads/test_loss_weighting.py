"""Several losses make one: alike, or weighed by learned uncertainty."""

import math

import pytest
import torch

from heads.spec import Head, Variant
from heads.training.loss_weighting import LossWeighting

SUMS = {"kind": 6.0, "tone": 1.0}
NUM_LABELS = {"kind": 3, "tone": 4}


def sums() -> dict[str, torch.Tensor]:
    return {target: torch.tensor(value, requires_grad=True) for target, value in SUMS.items()}


def test_equal_heads_add_up_by_their_means() -> None:
    balance = LossWeighting(("kind", "tone"), learned=False)
    assert balance(sums(), NUM_LABELS).item() == pytest.approx(2 + 0.25)
    assert not list(balance.parameters())
    assert balance.weights() == {}


def test_uncertain_heads_add_up_as_kendall_has_them() -> None:
    balance = LossWeighting(("kind", "tone"), learned=True)
    assert balance(sums(), NUM_LABELS).item() == pytest.approx(2.25)
    first, second = balance.parameters()
    with torch.no_grad():
        first.fill_(0.7)
        second.fill_(-0.4)
    found = balance(sums(), NUM_LABELS)
    assert found.item() == pytest.approx(2 * math.exp(-0.7) + 0.35 + 0.25 * math.exp(0.4) - 0.2)
    found.backward()
    assert first.grad is not None
    assert first.grad.item() == pytest.approx(-2 * math.exp(-0.7) + 0.5)
    assert balance.weights() == pytest.approx({"kind": math.exp(-0.7), "tone": math.exp(0.4)})


def test_batches_of_one_update_add_up_to_what_a_single_one_gives() -> None:
    balance = LossWeighting(("kind", "tone"), learned=True)
    first, _ = balance.parameters()
    with torch.no_grad():
        first.fill_(0.7)
    halves = {target: loss / 2 for target, loss in sums().items()}
    found = [balance(halves, NUM_LABELS, updates=updates).item() for updates in (False, True)]
    assert sum(found) == pytest.approx(balance(sums(), NUM_LABELS).item())


def test_the_weight_settles_at_the_inverse_of_twice_the_loss() -> None:
    balance = LossWeighting(("kind",), learned=True)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        balance({"kind": torch.tensor(6.0)}, {"kind": 3}).backward()
        optimizer.step()
    assert balance.weights()["kind"] == pytest.approx(1 / (2 * 2), rel=1e-3)


def test_a_head_without_a_label_in_the_step_counts_for_nothing() -> None:
    balance = LossWeighting(("kind", "tone"), learned=True)
    balance(sums() | {"tone": torch.tensor(0.0, requires_grad=True)}, {"kind": 3, "tone": 0}).backward()
    grads = [parameter.grad for parameter in balance.parameters()]
    assert all(grad is not None for grad in grads)
    assert grads[1] == 0


def test_fixed_weights_multiply_a_targets_loss_and_enter_the_variants_id_only_where_they_are_not_one() -> None:
    sums = {"kind": torch.tensor(6.0), "tone": torch.tensor(4.0)}
    balance = LossWeighting(("kind", "tone"), learned=False, fixed={"kind": 3.0})
    assert balance(sums, {"kind": 2, "tone": 4}).item() == pytest.approx(3.0 * 6 / 2 + 4 / 4)
    plain, same, other = (
        Variant(backbone="resnet18", heads=(head,))
        for head in (Head(target="a"), Head(target="a", weight=1), Head(target="a", weight=2))
    )
    assert plain.variant_id == same.variant_id != other.variant_id
