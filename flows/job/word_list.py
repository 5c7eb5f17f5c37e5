"""A list of words with the tag that each has most often in training: the plain model of tags, which knows no encoder."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flows.job.one_target import OfOneTarget
from heads.data.text_preprocess import decode_text
from heads.data.wordpiece import split_words
from heads.spec import Head
from heads.tasks.answers import Answer
from heads.tasks.bio import OUTSIDE
from heads.tasks.table import TASKS


@dataclass(frozen=True, eq=False)
class WordList(OfOneTarget):
    """The tag of each word, in small letters, that is most often in a span; all other words are outside of spans."""

    tags: Mapping[str, str] = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """How many words are listed."""
        return len(self.tags)

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {word: self.names.index(tag) for word, tag in self.tags.items()}

    def logits(self, texts: Sequence[Sequence[str]]) -> torch.Tensor:
        """The scores (N, C, W) of the words of texts: 1 for the tag that each has, 0 for the others; O behind a text's end."""
        numbers = [torch.tensor([self._numbers.get(word.lower(), 0) for word in words], dtype=torch.int64) for words in texts]
        return F.one_hot(pad_sequence(numbers, batch_first=True), len(self.names)).transpose(1, 2).float()

    def predict(self, files: Sequence[Path | bytes], batch_size: int = 32) -> list[dict[str, Answer]]:
        """An answer for each text, in order, as a bundle gives them. Raises TextError, naming it, if one cannot be read."""
        task, texts = TASKS[self.head.task], (split_words(decode_text(file)) for file in files)
        return [{self.head.target: task.answer(self.names, self.logits([words])[0], words)} for words in texts]

    def to_bytes(self) -> bytes:
        """The list as one file, which `read_word_list` reads."""
        fields = {"head": self.head.model_dump(mode="json"), "names": self.names, "tags": self.tags}
        return json.dumps(fields, ensure_ascii=False).encode()


def read_word_list(content: bytes) -> WordList:
    """The list that `to_bytes` wrote."""
    fields = json.loads(content)
    return WordList(Head.model_validate(fields["head"]), tuple(fields["names"]), fields["tags"])


def list_words(head: Head, names: Sequence[str], sentences: Iterable[tuple[Sequence[str], Sequence[int]]]) -> WordList:
    """The list of sentences, each its words and the number of each one's tag. Of equally frequent tags O is taken, then the first
    by name."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for words, numbers in sentences:
        for word, number in zip(words, numbers, strict=True):
            # On validation of wnut17 words as they are have a span F1 of 0.09 in place of 0.15.
            seen[word.lower()][names[number]] += 1
    tags = {word: min(counts, key=lambda tag: (-counts[tag], tag != OUTSIDE, tag)) for word, counts in seen.items()}
    return WordList(head, tuple(names), {word: tag for word, tag in sorted(tags.items()) if tag != OUTSIDE})
