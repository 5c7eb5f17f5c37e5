"""Stages whose BatchNorms are folded into their convolutions: every backbone that has some gives the same features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones import BACKBONES, row_of
from heads.backbones.blank import skeleton_stages
from heads.trunks.folding import fold
from tests.heads.moved_norms import features_of, gap, moved, num_norms, stages_with_norms

TEXTS = [name for name in BACKBONES if row_of(name).layout == "text"]
WITHOUT_NORMS = ["alexnet", "squeezenet1_1", "vgg11", "vgg16", "convnext_base", "convnext_tiny"]
WITHOUT_NORMS += ["swin_t", "swin_v2_t", "vit_b_16", "vit_b_32", *TEXTS]
WITH_NORMS = sorted({*BACKBONES} - {*WITHOUT_NORMS})
# Of the others nothing is left. In DenseNets half of them, and in MaxViT's blocks some, come before their convolutions.
LEFT = {"densenet121": 62, "maxvit_t": 11}
# Where a ReLU follows, and cuDNN can do it at once, so that it is folded in half precision as well.
LEFT_IN_HALF = {"resnet50": 5, "vgg11_bn": 1, "regnet_y_400mf": 21, "mobilenet_v2": 52, "efficientnet_b0": 49, "inception_v3": 1}


@pytest.mark.parametrize("name", WITH_NORMS)
def test_folded_stages_give_the_same_features_and_the_given_ones_stay_as_they_are(name: str) -> None:
    stages, side = stages_with_norms(name), {"maxvit_t": 224, "inception_v3": 96}.get(name, 32)
    parts, state = dict(stages.named_modules()), {key: tensor.clone() for key, tensor in stages.state_dict().items()}
    samples = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    folded, in_half = fold(stages, torch.float32), fold(stages, torch.bfloat16)
    expected = features_of(stages, samples, "fp32")
    for tap, features in features_of(folded, samples, "fp32").items():
        assert gap(features, expected[tap]) < 1e-4, tap
    assert num_norms(folded) == LEFT.get(name, 0)
    assert num_norms(in_half) == LEFT_IN_HALF.get(name, num_norms(in_half))
    assert (in_half is stages) == (num_norms(in_half) == num_norms(stages))
    assert dict(stages.named_modules()) == parts
    assert all(torch.equal(tensor, state[key]) for key, tensor in stages.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf"])
def test_in_half_precision_folded_stages_are_as_near_to_float32(name: str) -> None:
    stages, samples = stages_with_norms(name), torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact, plain = features_of(stages, samples, "fp32"), features_of(stages, samples, "bf16")
    for tap, features in features_of(fold(stages, torch.bfloat16), samples, "bf16").items():
        assert (features.dtype, features.shape) == (plain[tap].dtype, plain[tap].shape)
        assert gap(features, exact[tap]) < 1.1 * gap(plain[tap], exact[tap]), tap


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_stages_without_batch_norms_are_given_back(name: str) -> None:
    stages = skeleton_stages(name).eval()
    assert fold(stages, torch.float32) is stages


class Block(nn.Module):
    """A convolution, a BatchNorm, and what its kind says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.convolution, self.norm, self.relu = kind, nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        convolved = self.convolution(features)
        normed: Tensor = self.norm(convolved)
        if self.kind == "sum over what is added":
            features = features * 1.0
            features += normed
            return F.relu(features) + features
        kinds: dict[str, Callable[[], Tensor]] = {
            "alone": lambda: normed,
            "sum": lambda: self.relu(features + normed),
            "sum with a number": lambda: self.relu(normed + 1.0),
            "sum with itself": lambda: self.relu(normed + normed),
            "rectified and read again": lambda: self.relu(normed) + normed,
            "convolution read again": lambda: self.relu(normed) + convolved,
            "convolution called again": lambda: self.convolution(self.relu(normed)),
        }
        if self.kind == "by its values":
            return normed if normed.mean().item() > 0 else features
        return kinds[self.kind]()


@pytest.mark.parametrize(
    ("kind", "left", "left_in_half"),
    [
        ("alone", 0, 1),
        ("sum", 0, 0),
        ("sum with a number", 0, 1),
        ("sum with itself", 0, 1),
        ("sum over what is added", 0, 1),
        ("rectified and read again", 0, 1),
        ("convolution read again", 1, 1),
        ("convolution called again", 1, 1),
        ("by its values", 1, 1),
    ],
)
def test_only_what_is_read_by_a_batch_norm_alone_is_folded(kind: str, left: int, left_in_half: int) -> None:
    stages = moved(nn.Sequential(Block(kind)))
    folded, in_half = fold(stages, torch.float32), fold(stages, torch.bfloat16)
    assert (num_norms(folded), num_norms(in_half)) == (left, left_in_half)
    samples = torch.randn(2, 8, 5, 5)
    assert gap(folded(samples), stages(samples)) < 1e-5


def test_stages_that_train_are_not_folded() -> None:
    stages = nn.Sequential(Block("sum"))
    assert fold(stages, torch.float32) is stages
