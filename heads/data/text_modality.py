"""Texts as a modality: the contract of `heads.data.modalities`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.backbones.table import row_of
from heads.backbones.text_weights import read_vocabulary_text
from heads.backbones.words import NUM_WORDS
from heads.bert_size import parse_bert_size
from heads.data.masks import Masks
from heads.data.prefetch import prefetch
from heads.data.samples import DEFAULT_CACHE_BYTES
from heads.data.tags import Tags
from heads.data.text_dataset import TextDataset
from heads.data.text_preprocess import TextPreprocess, decode_text
from heads.data.wordpiece import Vocabulary, learn_vocabulary, parse_vocabulary
from heads.errors import HeadsError, WeightsError
from heads.spec import Fit, Variant

LIBRARIES = ("torch",)
# The shares of tokens that are left out, and hidden.
PLAIN_VIEW = ("0.0", "0.0")
PREPARE_SECONDS_PER_TOKEN = 5e-6
KEPT_SECONDS = 2e-6


def varied_view(fit: Fit) -> tuple[str | bool, ...]:
    """The fit's shares of tokens that are left out, and hidden."""
    return str(fit.word_dropout), str(fit.token_masking)


def describe_view(view: tuple[str | bool, ...]) -> str:
    """The shares in words; `plain` for neither."""
    dropped, masked = view
    parts = [f"word dropout {dropped}"] * (dropped != "0.0") + [f"token masking {masked}"] * (masked != "0.0")
    return ", ".join(parts) or "plain"


def preprocess_of(variant: Variant) -> TextPreprocess:
    """The fit's length; case as the backbone's vocabulary has it."""
    size = parse_bert_size(variant.backbone)
    return TextPreprocess(variant.fit.max_tokens, lowercase=not (size and size.cased))


def read_preprocess(value: Mapping[str, Any]) -> TextPreprocess:
    """The preprocessing that `TextPreprocess.to_json` wrote."""
    return TextPreprocess.from_json(value)


def prepared_on(device: torch.device) -> str:
    """Nothing: ids are the same everywhere."""
    return ""


def size_of(fit: Fit) -> int:
    """The most tokens that the network reads."""
    return fit.max_tokens


def prepare_seconds(size: int) -> float:
    """Seconds from a text of so many tokens to their ids."""
    return size * PREPARE_SECONDS_PER_TOKEN


def read_seconds(size: int) -> float:
    """Seconds from a text's file to its ids, of so many tokens."""
    return prepare_seconds(size)


def kept_seconds(size: int) -> float:
    """Seconds that a text takes whose ids are kept, of however many tokens."""
    return KEPT_SECONDS


def kept_bytes(size: int) -> int:
    """0: the ids of all texts are kept."""
    return 0


def vocabulary_of(variant: Variant, weights: Path | None, train: Sequence[Path | bytes]) -> Vocabulary:
    """The vocabulary of the weights' folder; of a backbone that learns words, the most frequent ones of the training texts.

    Raises WeightsError if the backbone needs weights and there are none, TextError if a text cannot be read.
    """
    row = row_of(variant.backbone)
    if row.learns_words:
        prefetch(train, range(len(train)))
        return learn_vocabulary(map(decode_text, train), NUM_WORDS)
    if weights is None:
        raise WeightsError(f"{variant.backbone} needs the vocabulary of its weights; give a folder of weights")
    return read_vocabulary(weights, lowercase=preprocess_of(variant).lowercase)


def read_vocabulary(weights: Path, *, lowercase: bool) -> Vocabulary:
    """The vocabulary in a folder of weights. Raises WeightsError, naming it, if it cannot be read or is none."""
    text = read_vocabulary_text(weights)
    try:
        return parse_vocabulary(text, lowercase=lowercase)
    except HeadsError as error:
        raise WeightsError(f"weights folder {weights}: {error}") from None


def open_samples(
    variant: Variant,
    files: Sequence[Path | bytes],
    labels: Mapping[str, Sequence[int] | Tensor],
    masks: Mapping[str, Masks] | None = None,
    digests: Sequence[str] = (),
    *,
    varied: bool,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    vocabulary: Vocabulary | None = None,
    tags: Mapping[str, Tags] | None = None,
) -> TextDataset:
    """The texts as the variant sees them: with words left out or hidden as its fit says if `varied`, else plain."""
    assert not masks
    assert vocabulary
    fit, shares = variant.fit, (variant.fit.word_dropout, variant.fit.token_masking) if varied else (0.0, 0.0)
    return TextDataset(
        files,
        labels,
        preprocess_of(variant),
        vocabulary,
        digests,
        seed=fit.seed,
        word_dropout=shares[0],
        token_masking=shares[1],
        tags=tags,
    )
