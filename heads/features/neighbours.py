"""The nearest stored features to others, by an exact search in blocks that holds one block of each side in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.features.reading import Features

BLOCK = 2048


def nearest(wanted: Features, among: Features, tap: str, count: int) -> tuple[Tensor, Tensor]:
    """For each of the wanted samples (n) its `count` nearest others at a tap: cosine similarities (n, k), positions (n, k).

    The nearest come first; k is `count`, or the number of the others if they are fewer. Maps and tokens are compared by their
    mean over positions.
    """
    count = min(count, len(among))
    similarities, positions = [], []
    for queries in _blocks(wanted, tap):
        best = torch.full((len(queries), count), -torch.inf), torch.zeros((len(queries), count), dtype=torch.long)
        first = 0
        for rows in _blocks(among, tap):
            values = torch.cat([best[0], queries @ rows.T], dim=1)
            numbers = torch.arange(first, first + len(rows)).expand(len(queries), -1)
            values, places = values.topk(count, dim=1)
            best = values, torch.cat([best[1], numbers], dim=1).gather(1, places)
            first += len(rows)
        similarities.append(best[0])
        positions.append(best[1])
    return torch.cat(similarities), torch.cat(positions)


def _blocks(features: Features, tap: str) -> Iterator[Tensor]:
    for start in range(0, len(features), BLOCK):
        rows = features[torch.arange(start, min(start + BLOCK, len(features)))][tap].float().cpu()
        # (b, C, H, W), or tokens (b, L, C), of which pooled ones keep a single position.
        pooled = rows.mean(dim=(2, 3)) if rows.ndim == 4 else rows.mean(dim=1) if rows.ndim == 3 else rows
        yield F.normalize(pooled, dim=1)
