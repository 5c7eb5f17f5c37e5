"""Convolutions over words, which learn from random weights. Padding never changes a result."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.text_stages import in_stages
from heads.backbones.words import CHANNELS, WordEmbeddings

KERNELS, NUM_FILTERS = (1, 3, 5, 7), 64


class Convolutions(nn.Module):
    """Convolutions of several widths side by side: features (N, L, C) to features (N, L, widths x filters).

    After Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(CHANNELS, NUM_FILTERS, width, padding="same") for width in KERNELS)

    def forward(self, features: Tensor, is_token: Tensor) -> Tensor:
        # Beyond a text lie zeros, as beyond a batch's longest one.
        signal = (features * is_token[..., None]).transpose(1, 2)
        return torch.cat([F.gelu(layer(signal)) for layer in self.filters], dim=1).transpose(1, 2)


class TextCnn(nn.Module):
    """Word embeddings, and convolutions that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.layer = WordEmbeddings(), Convolutions()


def split(model: nn.Module) -> list[nn.Module]:
    """The stages: the embeddings, then the convolutions."""
    assert isinstance(model, TextCnn)
    return in_stages(model.embeddings, [model.layer])
