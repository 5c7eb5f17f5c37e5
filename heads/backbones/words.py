"""The first stage of networks that learn their words from the training texts."""

from __future__ import annotations

from torch import Tensor, nn

# Words that are told apart; a vocabulary that is learned from fewer leaves the last rows unused.
NUM_WORDS = 8192
CHANNELS, DROPOUT = 128, 0.2


class WordEmbeddings(nn.Module):
    """Token ids (N, L) to features (N, L, C), a learned row a word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, CHANNELS)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.words.weight, std=CHANNELS**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        kept: Tensor = self.dropout(self.words(ids))
        return kept
