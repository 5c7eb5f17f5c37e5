"""Texts with their labels as a data set: token ids, cut to a length, varied by words left out or hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from heads.data.inputs import Inputs
from heads.data.labels import MISSING_LABEL, has_label
from heads.data.prefetch import prefetch
from heads.data.samples import Item
from heads.data.tags import Tags, mark_unread, pad_tags
from heads.data.text_feed import TextFeed
from heads.data.text_preprocess import TextPreprocess, decode_text
from heads.data.wordpiece import MASK, Vocabulary, split_words
from heads.errors import TextError


class TextDataset:
    """Texts and their labels by target: item i is (token ids (L), {target: label}, i). See `heads.data.samples`.

    In training, shares of the tokens are left out (`word_dropout`) or hidden behind the mask token (`token_masking`), by (seed,
    epoch, i) alone. Ids are kept in memory. Labels of `tags` are a number a word (W), as in `heads.data.labels`. An item raises
    TextError if its file cannot be read, or has other words than tags.
    """

    size = None

    def __init__(
        self,
        files: Sequence[Path | bytes],
        labels: Mapping[str, Sequence[int] | Tensor],
        preprocess: TextPreprocess,
        vocabulary: Vocabulary,
        digests: Sequence[str] = (),
        *,
        seed: int = 0,
        word_dropout: float = 0.0,
        token_masking: float = 0.0,
        tags: Mapping[str, Tags] | None = None,
    ) -> None:
        self.files, self.preprocess, self.vocabulary, self.digests = files, preprocess, vocabulary, tuple(digests)
        self.labels = {target: torch.as_tensor(column, dtype=torch.int64) for target, column in labels.items()}
        self.tags = dict(tags or {})
        self.labels |= {target: column.known() for target, column in self.tags.items()}
        for target, rows in self.labels.items():
            if len(rows) != len(files):
                raise ValueError(f"target {target!r} has {len(rows)} labels for {len(files)} texts")
        self.seed, self.word_dropout, self.token_masking = seed, word_dropout, token_masking
        # Shared memory: loader workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._ids: dict[int, Tensor] = {}
        self._words: dict[int, Tensor] = {}
        self._num_words: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose variation the next items have."""
        self._epoch.fill_(epoch)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Says that these texts are read next, in this order, so that files of other machines are fetched ahead."""
        prefetch(self.files, [index for index in indices if index not in self._ids])

    def __getitem__(self, index: int) -> Item:
        ids = self._varied(self._read(index), (self.seed, int(self._epoch), index))
        labels = {target: column[index] for target, column in self.labels.items()}
        return ids, labels | {target: self._tags_of(target, index) for target in self.tags}, index

    def view(self, index: int, number: int) -> Tensor:
        """The ids of a text in the view of this number: 0 as evaluation sees it, the others varied by digest and number alone."""
        ids = self._read(index)
        return self._varied(ids, (int(self.digests[index], 16), number)) if number else ids

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        """The labels of these texts by target, the same in every view."""
        labels = {target: column[indices] for target, column in self.labels.items()}
        return labels | {target: pad_tags([self._tags_of(target, index) for index in indices.tolist()]) for target in self.tags}

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        """How often each class occurs (C, up to the last that does), and how many texts are labelled."""
        labels = self.labels[target]
        labelled = labels[has_label(labels)]
        if target in self.tags:
            return self.tags[target].counts, len(labelled)
        return (labelled.sum(dim=0) if labels.ndim == 2 else labelled.bincount()), len(labelled)

    def collate(self, samples: Sequence[Tensor]) -> Inputs:
        """The ids as one batch (N, L), filled up with those of padding."""
        return Inputs(pad_sequence(list(samples), batch_first=True))

    def length(self, index: int) -> int:
        """How many tokens a text has."""
        return len(self._read(index))

    def words(self, indices: Sequence[int]) -> Tensor | None:
        """The `words` of `Inputs` for these texts (N, W); None if no tags are asked for."""
        return pad_sequence(list(map(self._words_of, indices)), batch_first=True) if self.tags else None

    def feed(self, device: torch.device) -> TextFeed:
        """The texts as they are read: nothing is left to prepare on a device."""
        return TextFeed(self)

    def _read(self, index: int) -> Tensor:
        if index not in self._ids:
            text, most = decode_text(self.files[index]), self.preprocess.max_tokens
            self._ids[index] = torch.tensor(self.vocabulary.encode(text, most))
            if self.tags:
                # Before a text's tokens stands what is read of all of it.
                self._words[index] = torch.tensor(self.vocabulary.word_places(text, most)) + 1
                self._num_words[index] = len(split_words(text))
        return self._ids[index]

    def _words_of(self, index: int) -> Tensor:
        self._read(index)
        return self._words[index]

    def _tags_of(self, target: str, index: int) -> Tensor:
        words, tags = self._words_of(index), self.tags[target].rows[index]
        if tags is None:
            return torch.full_like(words, MISSING_LABEL)
        if len(tags) != (num_words := self._num_words[index]):
            raise TextError(f"a text of {num_words} words has {len(tags)} tags of {target!r}; give each word one")
        return mark_unread(tags, words)

    def _varied(self, ids: Tensor, seed: tuple[int, ...]) -> Tensor:
        if not (self.word_dropout or self.token_masking):
            return ids
        random = np.random.default_rng(seed)
        dropped, hidden = (torch.from_numpy(random.random(len(ids)) < share) for share in (self.word_dropout, self.token_masking))
        # The marks of start and end always stay.
        dropped[[0, -1]] = hidden[[0, -1]] = False
        return torch.where(hidden, self.vocabulary.ids[MASK], ids)[~dropped]
