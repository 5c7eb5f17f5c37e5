"""What a consumer hands over as samples, and how it becomes a model's inputs: a reader a modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
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
from heads.data.inputs import Inputs, of_images
from heads.data.pixels import decode_pixels, pixels_of
from heads.data.preprocess import ImagePreprocess
from heads.data.samples import Preprocess
from heads.data.text_preprocess import TextPreprocess, compose, decode_text
from heads.data.wordpiece import Vocabulary, split_words
from heads.errors import ImageError, TextError
from heads.model.model import Model
from heads.tasks.answers import Extent

SampleInput = Path | str | bytes | Image.Image | np.ndarray[Any, Any]
Opened = Any


class Reader(Protocol):
    """How one modality's samples are read for predictions."""

    PLURAL: str

    def is_one(self, samples: object) -> bool:
        """Whether this is one sample, where a list of them is asked for."""
        ...

    def open(self, sample: SampleInput, name: str) -> Opened:
        """A sample as it is kept until its batch is complete. Raises ImageError or TextError, naming it, if it is none."""
        ...

    def collate(
        self,
        opened: Sequence[Opened],
        preprocess: Preprocess,
        vocabulary: Vocabulary | None,
        device: torch.device,
        *,
        finds_words: bool,
    ) -> Inputs:
        """Samples as one batch of a model's inputs on the device, with the places of words if these are asked for."""
        ...

    def extent_of(self, opened: Opened) -> Extent:
        """The width and height of an image, the words of a text."""
        ...

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        """Raises ValueError if a bundle's vocabulary does not fit its model."""
        ...


class _Images:
    PLURAL = "images"

    def is_one(self, samples: object) -> bool:
        return isinstance(samples, str | bytes | Path | Image.Image) or (isinstance(samples, np.ndarray) and samples.ndim != 4)

    def open(self, sample: SampleInput, name: str) -> Tensor:
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

    def collate(
        self,
        opened: Sequence[Tensor],
        preprocess: Preprocess,
        vocabulary: Vocabulary | None,
        device: torch.device,
        *,
        finds_words: bool,
    ) -> Inputs:
        assert isinstance(preprocess, ImagePreprocess)
        pixels = prepare_plain(opened, preprocess, device)
        return of_images(pixels.to(memory_format=torch.channels_last))

    def extent_of(self, opened: Tensor) -> Extent:
        return opened.shape[-1], opened.shape[-2]

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        if vocabulary is not None:
            raise ValueError("a bundle of images has a vocabulary")


class _Texts:
    PLURAL = "texts"

    def is_one(self, samples: object) -> bool:
        return isinstance(samples, str | bytes | Path)

    def open(self, sample: SampleInput, name: str) -> str:
        """The text as it is prepared in training."""
        if isinstance(sample, str):
            return compose(sample, name)
        if isinstance(sample, Path | bytes):
            return decode_text(sample, name)
        raise TextError(f"{name} is a {type(sample).__name__}; give a string, a file's path as a Path, or a file's bytes")

    def collate(
        self,
        opened: Sequence[str],
        preprocess: Preprocess,
        vocabulary: Vocabulary | None,
        device: torch.device,
        *,
        finds_words: bool,
    ) -> Inputs:
        assert isinstance(preprocess, TextPreprocess)
        assert vocabulary
        ids = [torch.tensor(vocabulary.encode(text, preprocess.max_tokens)) for text in opened]
        inputs = Inputs(pad_sequence(ids, batch_first=True))
        if finds_words:
            places = [torch.tensor(vocabulary.word_places(text, preprocess.max_tokens)) + 1 for text in opened]
            inputs = inputs._replace(words=pad_sequence(places, batch_first=True))
        return inputs.to(device, channels_last=False)

    def extent_of(self, opened: str) -> Extent:
        return split_words(opened)

    def check(self, model: Model, vocabulary: Vocabulary | None) -> None:
        rows = next(part for part in model.backbone.modules() if isinstance(part, nn.Embedding)).num_embeddings
        if vocabulary is None or len(vocabulary.tokens) > rows:
            found = "none" if vocabulary is None else f"one of {len(vocabulary.tokens)} tokens"
            raise ValueError(
                f"a bundle of texts has a vocabulary of at most as many tokens as its network, {rows}, and this has {found}"
            )


READERS: Mapping[Modality, Reader] = {"image": _Images(), "text": _Texts()}


def batches(named: Iterator[tuple[SampleInput, str]], size: int) -> Iterator[list[tuple[SampleInput, str]]]:
    """Samples with their names, `size` at a time, the last ones fewer."""
    while batch := list(islice(named, size)):
        yield batch
