"""Heads run side by side, against each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from heads.fused.alignment import aligned, is_aligned
from heads.fused.alignment import stack as stack_aligned
from heads.fused.linear import fused_forward
from heads.tasks.classifiers import PooledNorm
from tests.products import Products

NUM, CHANNELS = 5, 24


def make_heads(num_outputs: int, *, depth: int, width: int = 10, dropout: float = 0.3) -> list[nn.Sequential]:
    """Heads of one shape and other weights, in train mode."""
    widths = [CHANNELS, *[width] * depth]
    made = []
    for seed in range(NUM):
        torch.manual_seed(seed)
        hidden = [
            layer
            for number in range(depth)
            for layer in (nn.Linear(widths[number], width), nn.GELU() if number else nn.ReLU(), nn.Dropout(dropout))
        ]
        made.append(nn.Sequential(PooledNorm(CHANNELS), *hidden, nn.Linear(widths[-1], num_outputs)))
    return made


def stack(heads: list[nn.Sequential]) -> dict[str, Tensor]:
    names = [name for name, _ in heads[0].named_parameters()]
    return {name: torch.stack([head.get_parameter(name).detach() for head in heads]).requires_grad_() for name in names}


def run(heads: list[nn.Sequential], features: Tensor, towards: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What they give (V, N, C), and their weights' gradients (V, ...) on the way from `towards` (N, C)."""
    torch.manual_seed(7)
    weights = stack(heads)
    given = fused_forward(heads[0], heads[0][0](features), weights)
    return given.detach(), list(torch.autograd.grad((given * towards).sum(), list(weights.values())))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("num_rows", "num_outputs", "depth"), [(16, 1, 0), (1, 3, 1), (64, 3, 0), (33, 10, 2)])
def test_heads_side_by_side_give_what_each_gives_alone_to_the_bit(num_rows: int, num_outputs: int, depth: int) -> None:
    heads = make_heads(num_outputs, depth=depth)
    features, towards = torch.randn(num_rows, CHANNELS, 2, 2), torch.randn(num_rows, num_outputs)
    given, gradients = run(heads, features, towards)
    for place, head in enumerate(heads):
        alone, own = run([head], features, towards)
        assert torch.equal(given[place], alone[0])
        assert all(torch.equal(all_[place], one[0]) for all_, one in zip(gradients, own, strict=True))
        torch.manual_seed(7)
        expected = head(features)
        assert torch.equal(given[place], expected), "as the head's own forward pass"
        for found, weight in zip(
            gradients, torch.autograd.grad((expected * towards).sum(), list(head.parameters())), strict=True
        ):
            torch.testing.assert_close(found[place], weight)


@pytest.mark.parametrize(("num_rows", "num_outputs", "depth"), [(16, 1, 0), (1, 3, 1), (33, 10, 2)])
def test_no_product_of_heads_side_by_side_begins_where_one_of_a_heads_own_would_not(
    num_rows: int, num_outputs: int, depth: int
) -> None:
    """Where it does, MKL multiplies in another order on AMD processors, and its bits are not those that a head gives alone."""
    heads = make_heads(num_outputs, depth=depth)
    features, towards = torch.randn(num_rows, CHANNELS, 2, 2), torch.randn(num_rows, num_outputs)
    with Products() as products:
        run(heads, features, towards)
    # Forward and by the weights, and by the rows where a layer with weights came before.
    assert products.count == NUM * (2 * (depth + 1) + depth)
    assert products.misaligned == []


@pytest.mark.parametrize("shape", [(), (1,), (3,), (16,), (10, 24), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_tensor_of_an_aligned_stack_begins_at_64_bytes_and_has_its_values(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensors = [torch.randn(shape).to(dtype) for _ in range(4)]
    stacked = stack_aligned(tensors)
    assert torch.equal(stacked, torch.stack(tensors))
    assert stacked.dtype == dtype
    assert all(is_aligned(place) and place.is_contiguous() for place in stacked)
    assert all(aligned(place).data_ptr() == place.data_ptr() for place in stacked), "what lies well is not copied"
    packed = torch.randn(4, 3)
    assert not is_aligned(packed[1])
    assert is_aligned(aligned(packed[1]))
    assert torch.equal(aligned(packed[1]), packed[1])


def test_heads_in_eval_mode_drop_nothing() -> None:
    heads = [head.eval() for head in make_heads(3, depth=1)]
    features = torch.randn(8, CHANNELS, 1, 1)
    given = fused_forward(heads[0], heads[0][0](features), stack(heads))
    assert all(torch.equal(given[place], head(features)) for place, head in enumerate(heads))


def test_heads_side_by_side_obey_autocast() -> None:
    heads = make_heads(3, depth=1, dropout=0.0)
    features = torch.randn(8, CHANNELS, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        weights = stack(heads)
        given = fused_forward(heads[0], heads[0][0](features), weights)
        assert given.dtype == torch.bfloat16
        for place, head in enumerate(heads):
            torch.testing.assert_close(given[place], head(features))
    gradients = torch.autograd.grad(given.float().square().sum(), list(weights.values()))
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)


def test_products_of_whole_stacks_as_on_a_gpu_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = make_heads(3, depth=2)
    features, towards = torch.randn(16, CHANNELS, 2, 2), torch.randn(16, 3)
    expected, of_weights = run(heads, features, towards)
    monkeypatch.setattr("heads.model.precision.EXACT_DEVICES", ())
    given, gradients = run(heads, features, towards)
    torch.testing.assert_close(given, expected)
    for found, wanted in zip(gradients, of_weights, strict=True):
        torch.testing.assert_close(found, wanted)
