"""Features of texts' tokens, whose number differs from text to text: a row a token in the store, padded batches out of it.

Token 0 of a sample lies under the sample's own key, and so says that all are there: a shard, which appears whole, has all tokens
of its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.features.keys import Key, token_keys
from heads.features.reading import Features
from heads.features.shards import Layout
from heads.features.trunk import TrunkFeatures


def flatten_tokens(features: Tensor, lengths: Sequence[int]) -> Tensor:
    """The tokens of a padded batch (N, L, C) as rows, sample by sample."""
    return torch.cat([tokens[:length] for tokens, length in zip(features, lengths, strict=True)])


def open_tokens(trunk: TrunkFeatures, keys: Sequence[Key], lengths: Sequence[int], taps: Sequence[str]) -> TokenFeatures:
    """The features of all tokens of samples. Raises FeatureError if some are missing."""
    return TokenFeatures(trunk.open(token_keys(keys, lengths), taps), lengths)


class TokenFeatures:
    """As `Features`, but that a tap's tensor (b, L, C) is padded with zeros to the longest of the samples asked for."""

    def __init__(self, rows: Features, lengths: Sequence[int]) -> None:
        self._rows, self._lengths = rows, torch.tensor(lengths, dtype=torch.int64)
        self._starts = self._lengths.cumsum(0) - self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, positions: Tensor) -> Mapping[str, Tensor]:
        lengths = self._lengths[positions]
        places = torch.arange(int(lengths.max()))
        is_token = places < lengths[:, None]
        found = self._rows[(self._starts[positions][:, None] + places)[is_token]]
        return {tap: _padded(rows, is_token) for tap, rows in found.items()}

    @property
    def layouts(self) -> dict[str, Layout]:
        """The shape of a token and the dtype, by tap."""
        return self._rows.layouts

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that `in_memory` takes."""
        return self._rows.num_bytes

    def in_memory(self, device: torch.device | str = "cpu") -> TokenFeatures:
        """The same features held on `device`."""
        return TokenFeatures(self._rows.in_memory(device), self._lengths.tolist())


def _padded(rows: Tensor, is_token: Tensor) -> Tensor:
    padded = rows.new_zeros(*is_token.shape, *rows.shape[1:])
    padded[is_token.to(rows.device)] = rows
    return padded
