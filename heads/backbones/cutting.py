"""How each family of backbones is cut: a function from torchvision's whole model to its stages, front to back.

Stages share the model's modules. All take and give maps (N, C, H, W), but in vision transformers: these give tokens from the
stem on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from heads.backbones.tokens import TokenStem
from heads.backbones.torchvision_lean import Permute

Split = Callable[[nn.Module], list[nn.Module]]


class TransformInput(nn.Module):
    """From ImageNet's normalisation to that of Inception and GoogLeNet, (x - 0.5) / 0.5 for pixels x from 0 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        channels = zip(images.unbind(dim=1), means, stds, strict=True)
        return torch.stack([channel * (std / 0.5) + (mean - 0.5) / 0.5 for channel, mean, std in channels], dim=1)


def _children(parent: nn.Module, names: Iterable[str]) -> nn.Sequential:
    """The named submodules in a row, under their own names, so that a key still tells its place in torchvision's model."""
    return nn.Sequential(OrderedDict((name.rpartition(".")[2], parent.get_submodule(name)) for name in names))


def _cut_child(child: str, starts: tuple[int, ...]) -> Split:
    def split(model: nn.Module) -> list[nn.Module]:
        layers = model.get_submodule(child)
        names = [name for name, _ in layers.named_children()]
        ends = [*starts[1:], len(names)]
        return [_children(layers, names[start:end]) for start, end in zip(starts, ends, strict=True)]

    return split


def cut_features(*starts: int) -> Split:
    """A split of `features` into stages that begin at these indices."""
    return _cut_child("features", starts)


def cut_layers(*starts: int) -> Split:
    """A split of `layers`, as MNASNet calls its features."""
    return _cut_child("layers", starts)


def group(*groups: tuple[str, ...]) -> Split:
    """A split into groups of the model's own submodules."""
    return lambda model: [_children(model, names) for names in groups]


def densenet(model: nn.Module) -> list[nn.Module]:
    """DenseNet by resolution; its last ReLU, which torchvision's forward applies by hand, ends the last stage."""
    *stages, last = group(
        ("features.conv0", "features.norm0", "features.relu0", "features.pool0"),
        ("features.denseblock1",),
        ("features.transition1", "features.denseblock2"),
        ("features.transition2", "features.denseblock3"),
        ("features.transition3", "features.denseblock4", "features.norm5"),
    )(model)
    last.add_module("relu5", nn.ReLU(inplace=True))
    return [*stages, last]


def googlenet(model: nn.Module) -> list[nn.Module]:
    """GoogLeNet by resolution, without its auxiliary heads."""
    return _with_transform(
        _children(model, ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")),
        _children(model, ("inception3a", "inception3b")),
        _children(model, ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e")),
        _children(model, ("maxpool4", "inception5a", "inception5b")),
    )


def inception(model: nn.Module) -> list[nn.Module]:
    """Inception v3 by resolution, without its auxiliary head."""
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    return _with_transform(
        _children(model, stem),
        _children(model, ("Mixed_5b", "Mixed_5c", "Mixed_5d")),
        _children(model, ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")),
        _children(model, ("Mixed_7a", "Mixed_7b", "Mixed_7c")),
    )


def swin(model: nn.Module) -> list[nn.Module]:
    """Swin by resolution, its final norm in the last stage. It works on (N, H, W, C): each stage permutes to that and back."""
    stem, *stages = group(
        ("features.0",),
        ("features.1",),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "norm"),
    )(model)
    stem.add_module("channels_first", Permute([0, 3, 1, 2]))
    return [stem, *map(_turned, stages)]


def vit(model: nn.Module) -> list[nn.Module]:
    """A vision transformer: the stem, then its twelve blocks in stages of three, the final norm in the last."""
    stem = TokenStem(
        model.get_submodule("conv_proj"),  # type: ignore[arg-type]
        model.get_parameter("class_token"),
        model.get_parameter("encoder.pos_embedding"),
    )
    blocks = [f"encoder.layers.encoder_layer_{index}" for index in range(12)]
    *stages, last = (blocks[start : start + 3] for start in range(0, 12, 3))
    return [stem, *(_children(model, names) for names in stages), _children(model, [*last, "encoder.ln"])]


def _with_transform(stem: nn.Sequential, *stages: nn.Module) -> list[nn.Module]:
    return [nn.Sequential(OrderedDict([("transform", TransformInput()), *stem.named_children()])), *stages]


def _turned(stage: nn.Module) -> nn.Module:
    turns = ("channels_last", Permute([0, 2, 3, 1])), ("channels_first", Permute([0, 3, 1, 2]))
    return nn.Sequential(OrderedDict([turns[0], *stage.named_children(), turns[1]]))


RESNET = group(("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
REGNET = group(("stem",), *((f"trunk_output.block{index}",) for index in range(1, 5)))
SHUFFLENET = group(("conv1", "maxpool"), ("stage2",), ("stage3",), ("stage4",), ("conv5",))
MAXVIT = group(("stem",), *((f"blocks.{index}",) for index in range(4)))
CONVNEXT = cut_features(0, 1, 2, 4, 6)
