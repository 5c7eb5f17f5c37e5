"""The tags of a target's sentences, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from heads.data.labels import MISSING_LABEL


@dataclass(frozen=True)
class Tags:
    """A target's tags: of each sentence a number a word (W), None if they are not known; `counts` is each one's number (C)."""

    rows: Sequence[Tensor | None]
    counts: Tensor

    def known(self) -> Tensor:
        """0 for a sentence with tags, else MISSING_LABEL (N)."""
        return torch.tensor([MISSING_LABEL if row is None else 0 for row in self.rows], dtype=torch.int64)


def pad_tags(rows: Sequence[Tensor]) -> Tensor:
    """The tags of sentences as one batch (N, W), filled up with MISSING_LABEL."""
    return pad_sequence(list(rows), batch_first=True, padding_value=MISSING_LABEL)


def mark_unread(tags: Tensor, places: Tensor) -> Tensor:
    """A sentence's tags (W), those of words that are not read as numbers below MISSING_LABEL, of which nothing is learned.

    `places` are those of its first words among the features, as in `heads.data.inputs`.
    """
    return torch.where(F.pad(places, (0, len(tags) - len(places))) > 0, tags, MISSING_LABEL - 1 - tags)


def true_tags(labels: Tensor) -> Tensor:
    """The tags of all words, read or not; MISSING_LABEL stays."""
    return torch.where(labels < MISSING_LABEL, MISSING_LABEL - 1 - labels, labels)
