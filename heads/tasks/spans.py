"""Spans of words counted in batches of tag numbers, in the order of `heads.tasks.bio.tag_names`: O, then B and I of each type."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class _Spans(NamedTuple):
    """Of each word (N, W): whether a span starts there, its type, and the place behind its end."""

    starts: Tensor
    types: Tensor
    ends: Tensor


def count_spans(truths: Tensor, guesses: Tensor, num_types: int) -> Tensor:
    """The number of spans of each type (3, T) in the truth, in the guess, and in both with the same words; tags are (N, W)."""
    true, told = _find(truths), _find(guesses)
    hits = true.starts & told.starts & (true.types == told.types) & (true.ends == told.ends)
    found = ((true.types, true.starts), (told.types, told.starts), (true.types, hits))
    return torch.stack([types[which].bincount(minlength=num_types) for types, which in found]).double()


def may_not_follow(num_tags: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tags must not come first (C), and which must not come after which (C, C): an I goes on with its own type alone."""
    tags = torch.arange(num_tags, device=device)
    inside, types = _is_inside(tags), _types(tags)
    return inside, inside[:, None] & (types[:, None] != types)


def begin_spans(tags: Tensor) -> Tensor:
    """Tags (N, W) with a B for every I that goes on with nothing."""
    return torch.where(_is_inside(tags) & ~_goes_on(tags), tags - 1, tags)


def _types(tags: Tensor) -> Tensor:
    return (tags - 1).div(2, rounding_mode="floor")  # -1 of O


def _is_inside(tags: Tensor) -> Tensor:
    return (tags > 0) & (tags % 2 == 0)


def _goes_on(tags: Tensor) -> Tensor:
    types = _types(tags)
    return _is_inside(tags) & (F.pad(types, (1, 0), value=-1)[:, :-1] == types)


def _find(tags: Tensor) -> _Spans:
    types, goes_on, length = _types(tags), _goes_on(tags), tags.shape[1]
    breaks = torch.where(goes_on, length, torch.arange(length, device=tags.device))
    ends = F.pad(breaks, (0, 1), value=length)[:, 1:].flip(1).cummin(dim=1).values.flip(1)
    return _Spans((tags > 0) & ~goes_on, types, ends)
