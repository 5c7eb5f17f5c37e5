"""What a consumer hands over as samples, and how it becomes a model's inputs: a reader a modality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from heads.catalogue import Modality
from heads.data.decoding import decode
from heads.data.image_feed import prepare_plain
from heads.data.image_preprocess import ImagePreprocess
from heads.data.inputs import Inputs, of_images
from heads.data.order import by_length
from heads.data.pixels import decode_pixels, pixels_of
from heads.data.samples import Preprocess
from heads.data.text_preprocess import TextPreprocess, compose, decode_text
from heads.data.wordpiece import Vocabulary, split_words
from heads.errors import ImageError, TextError
from heads.model.model import Model
from heads.tasks.answers import Extent

SampleInput = Path | str | bytes | Image.Image | np.ndarray[Any, Any]
Opened = Any
# Of what is read ahead, to be forwarded by length.
AHEAD_LETTERS = 2**24


@dataclass(frozen=True)
class Preparing:
    """What a bundle says of its samples; `finds_words` if the places of a text's words are asked for."""

    preprocess: Preprocess
    vocabulary: Vocabulary | None
    finds_words: bool


class Reader(Protocol):
    """How one modality's samples are read for predictions."""

    PLURAL: str
    # How many samples are read ahead; a batch at least.
    NUM_AHEAD: int

    def is_one(self, samples: object) -> bool:
        """Whether this is one sample, where a list of them is asked for."""
        ...

    def doubt_of(self, samples: Sequence[SampleInput]) -> str | None:
        """Why these samples may not be what a person meant, None if nothing says so."""
        ...

    def open(self, sample: SampleInput, name: str, preparing: Preparing) -> Opened:
        """A sample as it is kept until its batch is complete. Raises ImageError or TextError, naming it, if it is none."""
        ...

    def length(self, opened: Opened) -> int:
        """How long a sample is, where a batch costs as much as its longest one; 0 where all cost the same."""
        ...

    def num_letters(self, opened: Opened) -> int:
        """How many letters are kept of a sample, of which no more than AHEAD_LETTERS are read ahead; 0 of an image."""
        ...

    def collate(self, opened: Sequence[Opened], preparing: Preparing, device: torch.device) -> Inputs:
        """Samples as one batch of a model's inputs on the device."""
        ...

    def extent_of(self, opened: Opened) -> Extent:
        """The width and height of an image, the words of a text."""
        ...

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        """Raises ValueError if a bundle's vocabulary does not fit its model."""
        ...


class _Images:
    PLURAL = "images"
    # Decoded images are large.
    NUM_AHEAD = 0

    def is_one(self, samples: object) -> bool:
        return isinstance(samples, str | bytes | Path | Image.Image) or (isinstance(samples, np.ndarray) and samples.ndim != 4)

    def doubt_of(self, samples: Sequence[SampleInput]) -> None:
        return None

    def open(self, sample: SampleInput, name: str, preparing: Preparing) -> Tensor:
        """An image's pixels (1, 3, H, W) in uint8."""
        if isinstance(sample, Path | str):
            return decode_pixels(Path(sample))
        if isinstance(sample, bytes):
            return decode_pixels(sample, name)
        if isinstance(sample, Image.Image):
            return pixels_of(decode(sample, name))
        if isinstance(sample, np.ndarray) and sample.dtype == np.uint8 and sample.shape[2:] == (3,) and sample.size:
            return pixels_of(decode(Image.fromarray(sample), name))
        given = f"array of {sample.dtype} {sample.shape}" if isinstance(sample, np.ndarray) else type(sample).__name__
        raise ImageError(f"{name} is a {given}; give a path, a file's bytes, a Pillow image or an array of uint8 (H, W, 3)")

    def length(self, opened: Tensor) -> int:
        return 0

    def num_letters(self, opened: Tensor) -> int:
        return 0

    def collate(self, opened: Sequence[Tensor], preparing: Preparing, device: torch.device) -> Inputs:
        assert isinstance(preparing.preprocess, ImagePreprocess)
        pixels = prepare_plain(opened, preparing.preprocess, device)
        return of_images(pixels.to(memory_format=torch.channels_last))

    def extent_of(self, opened: Tensor) -> Extent:
        return opened.shape[-1], opened.shape[-2]

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        if vocabulary is not None:
            raise ValueError("a bundle of images has a vocabulary")


@dataclass(frozen=True)
class _Text:
    """A text as it is prepared in training: its letters, its ids (L), and the places of its words (W) if these are asked for."""

    letters: str
    ids: Tensor
    words: Tensor | None


class _Texts:
    PLURAL = "texts"
    NUM_AHEAD = 4096

    def is_one(self, samples: object) -> bool:
        return isinstance(samples, str | bytes | Path)

    def doubt_of(self, samples: Sequence[SampleInput]) -> str | None:
        """The first string that is the path of a file."""
        for number, sample in enumerate(samples):
            if isinstance(sample, str) and isfile(sample):
                return (
                    f"{self.PLURAL}[{number}], {sample!r}, is a string and so is read as a text by itself, but a file of that "
                    "name exists; to read the file, give its path as a pathlib.Path"
                )
        return None

    def open(self, sample: SampleInput, name: str, preparing: Preparing) -> _Text:
        letters, vocabulary = _letters_of(sample, name), preparing.vocabulary
        assert isinstance(preparing.preprocess, TextPreprocess)
        assert vocabulary
        most = preparing.preprocess.max_tokens
        # Before a text's tokens stands what is read of all of it.
        words = torch.tensor(vocabulary.word_places(letters, most)) + 1 if preparing.finds_words else None
        return _Text(letters, torch.tensor(vocabulary.encode(letters, most)), words)

    def length(self, opened: _Text) -> int:
        return len(opened.ids)

    def num_letters(self, opened: _Text) -> int:
        return len(opened.letters)

    def collate(self, opened: Sequence[_Text], preparing: Preparing, device: torch.device) -> Inputs:
        inputs = Inputs(pad_sequence([text.ids for text in opened], batch_first=True))
        if preparing.finds_words:
            words = [text.words for text in opened if text.words is not None]
            inputs = inputs._replace(words=pad_sequence(words, batch_first=True))
        return inputs.to(device, channels_last=False)

    def extent_of(self, opened: _Text) -> Extent:
        return split_words(opened.letters)

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        rows = next(part for part in model.backbone.modules() if isinstance(part, nn.Embedding)).num_embeddings
        if vocabulary is None or len(vocabulary.tokens) > rows:
            found = "none" if vocabulary is None else f"one of {len(vocabulary.tokens)} tokens"
            raise ValueError(
                f"a bundle of texts has a vocabulary of at most as many tokens as its network, {rows}, and this has {found}"
            )


READERS: Mapping[Modality, Reader] = {"image": _Images(), "text": _Texts()}


def _letters_of(sample: SampleInput, name: str) -> str:
    if isinstance(sample, str):
        return compose(sample, name)
    if isinstance(sample, Path | bytes):
        return decode_text(sample, name)
    raise TextError(f"{name} is a {type(sample).__name__}; give a string, a file's path as a Path, or a file's bytes")


def batches(
    reader: Reader, samples: Iterable[SampleInput], preparing: Preparing, size: int
) -> Iterator[tuple[list[int], list[Opened]]]:
    """Samples `size` at a time, the last ones fewer, each with its number: texts ordered by length among those read ahead."""
    ahead: list[tuple[int, Opened]] = []
    most, num_letters = max(reader.NUM_AHEAD, size), 0
    for number, sample in enumerate(samples):
        ahead.append((number, reader.open(sample, f"{reader.PLURAL}[{number}]", preparing)))
        num_letters += reader.num_letters(ahead[-1][1])
        if len(ahead) == most or (num_letters >= AHEAD_LETTERS and len(ahead) >= size):
            yield from _cut(reader, ahead, size)
            ahead, num_letters = [], 0
    yield from _cut(reader, ahead, size)


def _cut(reader: Reader, ahead: Sequence[tuple[int, Opened]], size: int) -> Iterator[tuple[list[int], list[Opened]]]:
    ordered = by_length(ahead, lambda one: reader.length(one[1]))
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        yield [number for number, _ in batch], [opened for _, opened in batch]
