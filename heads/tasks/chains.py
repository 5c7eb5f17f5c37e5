"""Linear chains of tags: a sentence's loss by the forward algorithm, and its best tags by Viterbi's.

After Lafferty et al., "Conditional Random Fields: Probabilistic Models for Segmenting and Labeling Sequence Data", ICML 2001.
Scores are (N, C, W, C): of each of C tags at each of W words after each tag at the word before; at the first word all are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chain_losses(scores: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """The negative log probability of each sentence's tags (N), of `labels` (N, W) where `known`: from the first word on."""
    truths, num_tags = labels.clamp(min=0), scores.shape[1]
    own = scores.gather(1, truths[:, None, :, None].expand(-1, 1, -1, num_tags))[:, 0]
    path = own.gather(2, truths.roll(1, dims=1)[..., None])[..., 0]
    reached = scores[:, :, 0, 0]
    for place in range(1, scores.shape[2]):
        further = (reached[:, None] + scores[:, :, place]).logsumexp(dim=2)
        reached = torch.where(known[:, place, None], further, reached)
    return reached.logsumexp(dim=1) - (path * known).sum(dim=1)


def best_tags(scores: Tensor, known: Tensor) -> Tensor:
    """The likeliest tags of each sentence as a whole (N, W), of words that are `known` (N, W): from the first one on."""
    reached, origins = scores[:, :, 0, 0], []
    stay = torch.arange(scores.shape[1], device=scores.device)
    for place in range(1, scores.shape[2]):
        best, origin = (reached[:, None] + scores[:, :, place]).max(dim=2)
        here = known[:, place, None]
        reached = torch.where(here, best, reached)
        origins.append(torch.where(here, origin, stay))
    tags = [reached.argmax(dim=1)]
    for origin in reversed(origins):
        tags.append(origin.gather(1, tags[-1][:, None])[:, 0])
    return torch.stack(tags[::-1], dim=1)
