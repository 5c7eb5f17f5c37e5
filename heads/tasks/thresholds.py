"""From which probability on a label is predicted: tuned on validation, each label's by itself."""

from __future__ import annotations

import torch
from torch import Tensor

# The threshold of a label that was not tuned.
EVEN = 0.5
# A label has a threshold of its own if so many of the samples that tune it have it.
MIN_POSITIVES = 5


def tune_thresholds(scores: Tensor) -> Tensor:
    """The threshold (..., C) of each label that gives the best F1 on the rows (..., N, 2 * C) of labelled samples, as `score` of
    label sets gives them.

    It lies midway between two neighbouring probabilities. Of equally good thresholds the nearest to one half is taken, and one
    half for a label that is in fewer than MIN_POSITIVES rows: tuned on one or two it would be so low by chance that nearly all
    samples got the label (Yang 2001, "A Study of Thresholding Strategies for Text Categorization", SIGIR, on rare categories).
    """
    truths, probabilities = scores.chunk(2, dim=-1)
    if not scores.shape[-2]:
        return probabilities.new_full((*probabilities.shape[:-2], probabilities.shape[-1]), EVEN)
    ordered, order = probabilities.sort(dim=-2, descending=True)
    below = torch.cat([ordered[..., 1:, :], torch.zeros_like(ordered[..., :1, :])], dim=-2)
    middles = (ordered + below) / 2
    # Two neighbouring floats have none between them.
    candidates = torch.where(middles > below, middles, ordered)
    hits = (truths > 0).gather(-2, order).double().cumsum(dim=-2)
    guesses = torch.arange(1, scores.shape[-2] + 1, dtype=hits.dtype, device=hits.device)[:, None]
    f1 = 2 * hits / (guesses + hits[..., -1:, :])
    # A threshold cannot part equal probabilities: it may lie after the last of them only.
    f1[..., :-1, :].masked_fill_(ordered[..., 1:, :] == ordered[..., :-1, :], -1)
    distances = torch.where(f1 == f1.amax(dim=-2, keepdim=True), (candidates - EVEN).abs(), torch.inf)
    best = candidates.gather(-2, distances.argmin(dim=-2, keepdim=True)).squeeze(-2)
    return torch.where(hits[..., -1, :] >= MIN_POSITIVES, best, EVEN)


def decide(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """Which labels are predicted for each sample (..., N, C): those whose probability is at least their threshold (..., C)."""
    return probabilities >= thresholds.to(probabilities).unsqueeze(-2)
