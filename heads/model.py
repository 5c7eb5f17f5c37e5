"""A backbone and its named heads as one module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from heads.backbones import BACKBONES, build_stages
from heads.classification import build_head
from heads.spec import Variant


class Model(nn.Module):
    """Images (N, 3, H, W), float and normalised, to logits by target.

    The first `num_frozen_stages` of the backbone stay in eval mode whatever `train()` asks; `heads.freezing` sets it.
    """

    def __init__(self, backbone: nn.Sequential, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        # A target may hold dots or be a word of ModuleDict's own, so its place in the variant is the key.
        self.head_keys = {target: f"head{index}" for index, target in enumerate(heads)}
        self.heads = nn.ModuleDict({self.head_keys[target]: head for target, head in heads.items()})
        self.num_frozen_stages = 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets in the variant's order."""
        return tuple(self.head_keys)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {target: self.heads[key](features) for target, key in self.head_keys.items()}

    def train(self, mode: bool = True) -> Model:
        """Itself, in train or eval mode, frozen stages always in eval mode."""
        super().train(mode)
        for stage in list(self.backbone)[: self.num_frozen_stages]:
            stage.eval()
        return self


def build_model(variant: Variant, classes: Mapping[str, Sequence[str]], weights: Path | None) -> Model:
    """The model of a variant, with one output a class name in `classes[target]`; equal wherever it is built.

    What is random in it depends on the variant's seed alone, and the random state of the caller is left as it was.
    Raises WeightsError where `weights` is no file of torchvision's weights for the backbone.
    """
    channels = BACKBONES[variant.backbone].channels[-1]
    with _seeded(f"{variant.fit.seed}"):
        backbone = build_stages(variant.backbone, weights)
    heads = {}
    for head in variant.heads:
        # Its own stream, so that a head starts the same beside other heads and on given or random weights.
        with _seeded(f"{variant.fit.seed}/{head.target}"):
            heads[head.target] = build_head(head.design, channels, len(classes[head.target]))
    return Model(backbone, heads)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained now."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
