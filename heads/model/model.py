"""A backbone and its named heads as one module."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.blank import NothingDrawn, skeleton_stages
from heads.backbones.table import row_of
from heads.backbones.tokens import tokens_to_map
from heads.backbones.weights import build_stages
from heads.catalogue import TASK_FACTS, Task
from heads.data.inputs import Inputs, of_images
from heads.spec import Variant
from heads.tasks.table import TASKS
from heads.tasks.taggers import Tagger, outside_where


class Model(nn.Module):
    """A backbone with named heads: images (N, 3, H, W), or other samples, to logits by target, (N, C), of masks (N, C, H, W), of
    tags (N, C, W) or (N, C, W, C).

    `taps` are the numbers of the stages whose features a head takes, by target; `tasks` are the heads' tasks. The first
    `num_frozen_stages` of the backbone stay in eval mode whatever `train()` asks; `heads.model.freezing` sets it.
    """

    def __init__(
        self,
        backbone: nn.Sequential,
        heads: Mapping[str, nn.Module],
        taps: Mapping[str, tuple[int, ...]],
        tasks: Mapping[str, Task],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps, self.tasks = dict(taps), dict(tasks)
        # A target may hold dots or be a word of ModuleDict's own, so its place in the variant is the key.
        self.head_keys = {target: f"head{index}" for index, target in enumerate(heads)}
        self.heads = nn.ModuleDict({self.head_keys[target]: head for target, head in heads.items()})
        self.num_frozen_stages = 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets in the variant's order."""
        return tuple(self.head_keys)

    def forward(self, inputs: Inputs | Tensor) -> dict[str, Tensor]:
        """Logits by target, from samples or from stored features of them; a tensor is a batch of images."""
        features, size, words = of_images(inputs) if isinstance(inputs, Tensor) else inputs
        return self.forward_heads(self.forward_backbone(features), size, words)

    def forward_backbone(self, inputs: Tensor | Mapping[int, Tensor], also: Collection[int] = ()) -> dict[int, Tensor]:
        """The features of every stage that a head taps, by the stage's number, from samples or from features of some stages.

        Given features of stages, only the stages after the last of them run. Other stages may `also` be asked for.
        """
        tapped = {number for taps in self.taps.values() for number in taps} | set(also)
        known = {} if isinstance(inputs, Tensor) else dict(inputs)
        first = max(known) + 1 if known else 0
        features = inputs if isinstance(inputs, Tensor) else known[first - 1]
        for number in range(first, max(tapped) + 1):
            features = self.backbone[number](features)
            known[number] = features
        return {number: known[number] for number in tapped}

    def forward_heads(
        self, features: Mapping[int, Tensor], size: tuple[int, int] | None, words: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits by target from tapped features, those of masks resized to the images' `size` (height, width).

        Tags are told at the places of `words` (N, W), where a word that is not read is outside of spans; without these the
        scores (N, C, L) of each token of a text by itself.
        """
        logits = {}
        for target, key in self.head_keys.items():
            tapped = [features[tap] for tap in self.taps[target]]
            if TASK_FACTS[self.tasks[target]].tells == "pixels":
                assert size, "masks are of images"
                logits[target] = upsample(self.heads[key](*(_as_map(rows, size) for rows in tapped)), size)
            elif TASK_FACTS[self.tasks[target]].tells == "tags":
                logits[target] = _tagged(self.heads[key], tapped[-1], words)
            else:
                logits[target] = self.heads[key](*tapped)
        return logits

    def train(self, mode: bool = True) -> Model:
        """Sets train or eval mode, frozen stages always to eval mode, and gives the model itself."""
        self.training = self.backbone.training = mode
        self.heads.train(mode)
        for number, stage in enumerate(self.backbone):
            if number >= self.num_frozen_stages:
                stage.train(mode)
            elif stage.training:
                stage.eval()
        return self


def build_model(
    variant: Variant, classes: Mapping[str, Sequence[str]], weights: Path | None, *, backbone: nn.Sequential | None = None
) -> Model:
    """The model of a variant, with one output a class name in `classes[target]`; equal wherever it is built.

    Its random weights depend on the variant's seed alone, and torch's random state is left as it was. Models that do not
    train it may share a `backbone`, as `build_backbone` gives it. Raises WeightsError if `weights` is no file of torchvision's
    weights for the backbone.
    """
    row = row_of(variant.backbone)
    backbone = build_backbone(variant, weights) if backbone is None else backbone
    heads, taps = {}, {}
    for head in variant.heads:
        task = TASKS[head.task]
        taps[head.target] = task.taps(head.design, row)
        # Its own stream, so that a head starts the same beside other heads and on given or random weights.
        with _seeded(f"{variant.fit.seed}/{head.target}"):
            heads[head.target] = task.build_head(head, variant.fit, row, len(classes[head.target]))
    return Model(backbone, heads, taps, {head.target: head.task for head in variant.heads})


def build_outline(variant: Variant, classes: Mapping[str, Sequence[str]]) -> Model:
    """The model of `build_model` without storage (on the meta device): the names, shapes and types of its weights."""
    backbone = skeleton_stages(variant.backbone)
    with torch.device("meta"), NothingDrawn():
        return build_model(variant, classes, None, backbone=backbone)


def _tagged(head: nn.Module, tokens: Tensor, words: Tensor | None) -> Tensor:
    if words is None:
        assert isinstance(head, Tagger)
        return head.each(tokens[:, 1:])
    return outside_where(words == 0, head(tokens.gather(1, words[..., None].expand(-1, -1, tokens.shape[2]))))


def _as_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as they are, and tokens as the map of an image of this height and width."""
    if features.ndim == 4:
        return features
    num_patches = features.shape[1] - 1
    rows = round((num_patches * size[0] / size[1]) ** 0.5)
    return tokens_to_map(features, rows, num_patches // rows)


def build_backbone(variant: Variant, weights: Path | None) -> nn.Sequential:
    """The stages of a variant's backbone; random ones depend on its seed alone. Raises WeightsError as `build_model` does."""
    with _seeded(f"{variant.fit.seed}"):
        return build_stages(variant.backbone, weights)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) at another height and width, bilinearly."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


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
