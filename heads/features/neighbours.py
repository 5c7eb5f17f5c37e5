"""The nearest stored features to others, by an exact search in blocks that holds one block of each side in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.features.reading import Features

BLOCK = 2048
# From samples (n, ...) to what they are compared by (n, ...), and from that of two blocks to how alike they are (n, m).
Look = Callable[[Tensor], Tensor]
Compare = Callable[[Tensor, Tensor], Tensor]


def pooled(rows: Tensor) -> Tensor:
    """Features (n, ...) as vectors (n, C) of length 1, maps and tokens by their mean over positions."""
    # (n, C, H, W), or tokens (n, L, C), of which pooled ones keep a single position.
    flat = rows.mean(dim=(2, 3)) if rows.ndim == 4 else rows.mean(dim=1) if rows.ndim == 3 else rows
    return F.normalize(flat, dim=1)


def cosines(some: Tensor, others: Tensor) -> Tensor:
    """The cosine similarities (n, m) of vectors of length 1."""
    return some @ others.T


def nearest(
    wanted: Features, among: Features, tap: str, count: int, look: Look = pooled, compare: Compare = cosines
) -> tuple[Tensor, Tensor]:
    """For each of the wanted samples (n) its `count` nearest others at a tap: similarities (n, k), positions (n, k).

    The nearest come first; k is `count`, or the number of the others if they are fewer. `look` says what samples are compared
    by, and `compare` how alike that of two is.
    """
    count = min(count, len(among))
    similarities, positions = [], []
    for queries in _blocks(wanted, tap, look):
        best = torch.full((len(queries), count), -torch.inf), torch.zeros((len(queries), count), dtype=torch.long)
        first = 0
        for rows in _blocks(among, tap, look):
            values = torch.cat([best[0], compare(queries, rows)], dim=1)
            numbers = torch.arange(first, first + len(rows)).expand(len(queries), -1)
            values, places = values.topk(count, dim=1)
            best = values, torch.cat([best[1], numbers], dim=1).gather(1, places)
            first += len(rows)
        similarities.append(best[0])
        positions.append(best[1])
    return torch.cat(similarities), torch.cat(positions)


def _blocks(features: Features, tap: str, look: Look) -> Iterator[Tensor]:
    for start in range(0, len(features), BLOCK):
        yield look(features[torch.arange(start, min(start + BLOCK, len(features)))][tap].float().cpu())
