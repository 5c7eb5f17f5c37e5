"""A row of the table of backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from heads.backbones.cutting import Split
    from heads.backbones.source import Source
    from heads.catalogue import Interpolation

Layout = Literal["map", "tokens", "text"]


def example_image(side: int) -> Tensor:
    """One image (1, 3, side, side), to count costs on."""
    return torch.zeros(()).expand(1, 3, side, side)


@dataclass(frozen=True)
class Backbone:
    """A row of the table: how a whole model with random weights is built, where published ones come from, how it is cut.

    `source` is None if no weights are published. `split` gives the stages in the order of `BACKBONE_STAGES`; `channels` and
    `strides` (image pixels a position) are those after each stage. What follows the last stage (pooling, and ConvNeXt's final
    norm) belongs to the classifier, whose parameters' names begin with one of `classifier`, as do those of auxiliary heads.
    `layout` is that of the last stage's features: a map (N, C, H, W), tokens (N, 1 + L, C) with the class token first,
    or those of a text (N, 1 + L, C) with their mean first and zeros where there is no token.
    `interpolation` is the one images are resized with. `example` gives one sample of a size: an image of so many
    pixels a side, or a text of so many tokens. One that `learns_words` has a vocabulary learned from the texts that it is
    trained on, where others bring theirs with their weights.
    """

    build: Callable[[], nn.Module]
    source: Source | None
    split: Split
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classifier: tuple[str, ...] = ("classifier.",)
    layout: Layout = "map"
    interpolation: Interpolation = "bilinear"
    example: Callable[[int], Tensor] = example_image
    learns_words: bool = False
