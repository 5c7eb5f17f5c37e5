"""WordPiece, BERT's way from a text to tokens: words, cut into the longest pieces that a vocabulary holds.

After Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019. By hand, since a consumer then needs no
package more; the ids are those of the library `tokenizers` (tests/heads/test_wordpiece.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, islice

from heads.errors import HeadsError

PAD, UNKNOWN, START, END, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUED = "##"
# A longer word is unknown, whatever is in it.
MAX_WORD_CHARS = 100
# What stands between white space comes again and again, if it is short: its pieces are kept, which saves most of the time.
MAX_KEPT_CHARS, MAX_KEPT_TEXTS = 32, 2**16
_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
_DROP, _ALONE, _LETTER = range(3)
# Other letters that Python takes for white space, such as the form feed, are left out like all control characters.
_BETWEEN_SPACES = re.compile("[^\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a network knows, each at the place of its id; [PAD] is 0. `lowercase` strips case and accents.

    Raises HeadsError if a special token is missing, [PAD] is not the first, or a token is there twice.
    """

    tokens: tuple[str, ...] = field(repr=False)
    lowercase: bool = True
    ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _kept: dict[str, tuple[int, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        ids = {token: number for number, token in enumerate(self.tokens)}
        if missing := [token for token in SPECIAL if token not in ids]:
            raise HeadsError(f"the vocabulary lacks {', '.join(missing)}; it must hold {', '.join(SPECIAL)}, a token a line")
        if ids[PAD] or len(ids) != len(self.tokens):
            wrong = f"{PAD} is in line {ids[PAD] + 1}, not the first" if ids[PAD] else "a token is there twice"
            raise HeadsError(f"the vocabulary is no WordPiece vocabulary: {wrong}; give the weights' own vocab.txt")
        object.__setattr__(self, "ids", ids)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """The ids of a text: [CLS], then its pieces as far as `max_tokens` ids reach, then [SEP]."""
        ids = [self.ids[START]]
        for found in _BETWEEN_SPACES.finditer(text):
            ids += self._pieces_of(found[0], max_tokens - len(ids))
            if len(ids) >= max_tokens:
                break
        return [*ids[: max_tokens - 1], self.ids[END]]

    def word_places(self, text: str, max_tokens: int) -> list[int]:
        """For each word between white space, the place in `encode` of its first piece; -1 of a word without one.

        Such are those of letters that are left out, and those that begin where the ids are cut; after `max_tokens` words none is
        looked at.
        """
        places, place = [], 1
        for found in islice(_BETWEEN_SPACES.finditer(text), max_tokens):
            num_pieces = 0
            if place < max_tokens - 1:
                num_pieces = len(self._pieces_of(found[0], max_tokens))
            places.append(place if num_pieces and place < max_tokens - 1 else -1)
            place += num_pieces
        return places

    def _pieces_of(self, text: str, most: int) -> Sequence[int]:
        """The ids of the pieces of what stands between white space: all of a short one, of a long one as many as asked for."""
        if (kept := self._kept.get(text)) is not None:
            return kept
        pieces = (number for word in words_of(text, lowercase=self.lowercase) for number in _pieces(self, word))
        if len(text) > MAX_KEPT_CHARS or len(self._kept) >= MAX_KEPT_TEXTS:
            return tuple(islice(pieces, most))
        return self._kept.setdefault(text, tuple(pieces))

    def text(self) -> str:
        """The vocabulary as the text of a vocab.txt, a token a line."""
        return "".join(f"{token}\n" for token in self.tokens)


def parse_vocabulary(text: str, *, lowercase: bool) -> Vocabulary:
    """The vocabulary in the text of a vocab.txt. Raises HeadsError as `Vocabulary` does."""
    # By plain newlines alone: a token may be a letter that `splitlines` takes for the end of a line.
    lines = text.split("\n")
    return Vocabulary(tuple(line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])), lowercase)


def learn_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """The most frequent words of texts as a vocabulary of at most `size` tokens; rarer words are then unknown."""
    counts = Counter(word for text in texts for word in words_of(text, lowercase=True) if len(word) <= MAX_WORD_CHARS)
    ranked = sorted((word for word in counts if word not in SPECIAL), key=lambda word: (-counts[word], word))
    return Vocabulary((*SPECIAL, *ranked[: size - len(SPECIAL)]))


def split_words(text: str) -> tuple[str, ...]:
    """The parts of a text between white space, which are what tags are of."""
    return tuple(_BETWEEN_SPACES.findall(text))


def words_of(text: str, *, lowercase: bool) -> Iterator[str]:
    """The words of a text as BERT parts them: at white space, and around punctuation and CJK letters.

    They are found one after another: of a long text no more is read than is asked for.
    """
    for found in _BETWEEN_SPACES.finditer(text):
        clean = "".join(_cleaned(found[0]))
        if lowercase and not (clean.isascii() and clean.islower()):
            plain = "".join(letter for letter in unicodedata.normalize("NFD", clean) if unicodedata.category(letter) != "Mn")
            # Letter by letter: the lower case of a whole word knows a sigma at its end.
            clean = "".join(letter.lower() for letter in plain)
        for part in clean.split():
            yield from _parted(part)


def _cleaned(text: str) -> Iterator[str]:
    for letter in text:
        kind = _kind(letter)
        if kind == _ALONE:
            yield f" {letter} "
        elif kind == _LETTER:
            yield letter


@lru_cache(maxsize=2**16)
def _kind(letter: str) -> int:
    # What Unicode has not assigned is kept, as by `tokenizers`.
    if letter == "\ufffd" or unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cs"):
        return _DROP
    return _ALONE if any(first <= ord(letter) <= last for first, last in _CJK) else _LETTER


def _parted(part: str) -> Iterator[str]:
    for punctuated, letters in groupby(part, _is_punctuation):
        if punctuated:
            yield from letters
        else:
            yield "".join(letters)


@lru_cache(maxsize=2**16)
def _is_punctuation(letter: str) -> bool:
    return (letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " ") or unicodedata.category(
        letter
    ).startswith("P")


def _pieces(vocabulary: Vocabulary, word: str) -> Sequence[int]:
    """The ids of a word's pieces, or that of [UNK] if it cannot be cut into pieces that are known."""
    ids, found, start = vocabulary.ids, list[int](), 0
    if word in ids and len(word) <= MAX_WORD_CHARS:
        return (ids[word],)
    while start < len(word) <= MAX_WORD_CHARS:
        prefix = CONTINUED if start else ""
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in ids), start)
        if end == start:
            return (ids[UNKNOWN],)
        found.append(ids[prefix + word[start:end]])
        start = end
    return found or (ids[UNKNOWN],)
