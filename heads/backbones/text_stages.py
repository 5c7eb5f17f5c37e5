"""How a text's features pass from stage to stage: with a mark for each token, so that what fills up a batch counts for nothing.

Between stages features are (N, L, C + 1): the last channel is 1 for a token and 0 for padding. After the last stage they are
tokens (N, 1 + L, C): the mean of a text's tokens, then the tokens themselves, zeros in place of padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PAD_ID = 0


class FirstStage(nn.Module):
    """Token ids (N, L) to marked features: `layer` gives those of the ids (N, L, C)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        return _marked(self.layer(ids), ids != PAD_ID)


class Stage(nn.Module):
    """Marked features to marked features: `layer` takes features (N, L, C) and whether each is of a token (N, L)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, marked: Tensor) -> Tensor:
        is_token = marked[..., -1] > 0
        return _marked(self.layer(marked[..., :-1], is_token), is_token)


class LastStage(nn.Module):
    """Marked features to the mean of a text's tokens, and the tokens: (N, 1 + L, C)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, marked: Tensor) -> Tensor:
        weights = marked[..., -1:]
        tokens = self.layer(marked[..., :-1], weights[..., 0] > 0) * weights
        mean = tokens.sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return torch.cat([mean, tokens], dim=1)


def in_stages(embeddings: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The stages of a network of texts: its embeddings, then a stage a layer."""
    *inner, last = layers
    return [FirstStage(embeddings), *map(Stage, inner), LastStage(last)]


def _marked(features: Tensor, is_token: Tensor) -> Tensor:
    return torch.cat([features, is_token.unsqueeze(-1).to(features.dtype)], dim=-1)


def example_text(num_tokens: int) -> Tensor:
    """One text (1, L), to count costs on."""
    return torch.zeros(1, num_tokens, dtype=torch.int64)
