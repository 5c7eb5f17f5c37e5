"""The nets of tagging heads, by design: from the features of a text's words to a score of each tag at each word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.tasks.spans import may_not_follow

# In place of minus infinity, of which a difference is no number.
FORBIDDEN = -1e4


class Tagger(nn.Module):
    """Features of words (N, W, I) to scores (N, C, W), of each word by itself."""

    def __init__(self, channels: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.layers = nn.Sequential(*layers)

    def forward(self, words: Tensor) -> Tensor:
        return self.each(words)

    def each(self, words: Tensor) -> Tensor:
        """The scores of each word by itself (N, C, W)."""
        scores: Tensor = self.layers(self.norm(words))
        return scores.transpose(1, 2)


def outside_where(unread: Tensor, scores: Tensor) -> Tensor:
    """Scores (N, C, W), or of a chain (N, C, W, C), by which words that are `unread` (N, W) are outside of spans for certain."""
    certain = (torch.arange(scores.shape[1], device=scores.device) > 0) * FORBIDDEN
    certain = certain.to(scores.dtype).reshape(1, -1, *[1] * (scores.ndim - 2))
    return torch.where(unread[:, None, :, None] if scores.ndim == 4 else unread[:, None], certain, scores)


class ChainTagger(Tagger):
    """Features of words (N, W, I) to the scores of a chain (N, C, W, C), as in `heads.tasks.chains`.

    What a tag scores after another is learned, but for what the BIO scheme forbids: an I that goes on with no span of its type.
    """

    def __init__(self, channels: int, num_tags: int, layers: list[nn.Module]) -> None:
        super().__init__(channels, layers)
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))  # a tag, and the one before it
        self.starts = nn.Parameter(torch.zeros(num_tags))

    def forward(self, words: Tensor) -> Tensor:
        scores = self.each(words).float()[..., None]
        first, after = may_not_follow(len(self.starts), scores.device)
        starts = self.starts.float().masked_fill(first, FORBIDDEN)
        transitions = self.transitions.float().masked_fill(after, FORBIDDEN)
        begin = (scores[:, :, :1] + starts[:, None, None]).expand(-1, -1, -1, len(starts))
        return torch.cat([begin, scores[:, :, 1:] + transitions[:, None]], dim=2)
