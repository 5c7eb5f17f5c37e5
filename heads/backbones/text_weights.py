"""Weights of encoders of texts: a folder in Hugging Face's layout, with config.json, model.safetensors and a file of words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from heads.backbones.bert import EPSILON
from heads.backbones.state_checks import check_finite
from heads.backbones.tokenizer_file import read_words
from heads.bert_size import BertSize
from heads.errors import WeightsError

CONFIG, TENSORS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
# The second is read where the first is not there: version 5 of `transformers` writes the second alone.
WORDS, WORDS_IN_JSON = "vocab.txt", "tokenizer.json"
WHAT_TO_GIVE = (
    f"give a folder with {CONFIG}, {TENSORS} and {WORDS} or {WORDS_IN_JSON}, as Hugging Face's `save_pretrained` of model and "
    "tokenizer writes it"
)
# What is the same in every encoder that is read, by its name in config.json and with what is meant where it is left out.
FIXED: Mapping[str, object] = {"hidden_act": "gelu", "position_embedding_type": "absolute", "layer_norm_eps": EPSILON}
# No parameters, but the numbers of places, written by some versions.
NO_PARAMETERS = ("embeddings.position_ids",)
# What stands before the parameters' names of an encoder within another model: of a pretraining or a head, of a module that holds
# such a model, of sentence-transformers.
PREFIX = re.compile(r"(model\.)?bert\.|0\.auto_model\.")
# The norms' names in files as old as BERT itself.
OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


def read_size(folder: Path) -> BertSize:
    """The size of the encoder in a folder. Raises WeightsError if it lacks a file, or holds another architecture."""
    config = _read_config(folder)
    kind = config.get("model_type")
    if kind != "bert":
        named = ", ".join(map(str, config.get("architectures") or ())) or "no architecture named"
        raise WeightsError(f"weights folder {folder} is of {kind!r} ({named}), which is not read; allowed: model_type 'bert'")
    for name, wanted in FIXED.items():
        if (given := config.get(name, wanted)) != wanted:
            raise WeightsError(
                f"weights folder {folder} has {name} {given!r} in {CONFIG}, which is not read; allowed: {wanted!r}"
            )
    words, lowercase = _words(folder)
    try:
        size = BertSize(
            num_layers=int(config["num_hidden_layers"]),
            channels=int(config["hidden_size"]),
            num_heads=int(config["num_attention_heads"]),
            num_hidden=int(config["intermediate_size"]),
            num_tokens=int(config["vocab_size"]),
            num_positions=int(config["max_position_embeddings"]),
            num_types=int(config["type_vocab_size"]),
            cased=not lowercase,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"weights folder {folder}: {CONFIG} does not tell the encoder's size ({error}); {WHAT_TO_GIVE}"
        ) from None
    if not size.is_possible:
        raise WeightsError(f"weights folder {folder}: {CONFIG} tells of {size.name}, which cannot be built; {WHAT_TO_GIVE}")
    num_words = words.count("\n")
    if num_words > size.num_tokens:
        raise WeightsError(
            f"weights folder {folder}: {_words_file(folder).name} holds {num_words} tokens, and {CONFIG} tells of "
            f"{size.num_tokens}; {WHAT_TO_GIVE}"
        )
    return size


def read_state(folder: Path) -> dict[str, Tensor]:
    """The encoder's parameters in float32, under the names of `BertModel`.

    Raises WeightsError if they cannot be read, or are not finite.
    """
    _check(folder)
    try:
        state = safetensors.torch.load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weights folder {folder}: {TENSORS} could not be read ({error}); {WHAT_TO_GIVE}") from None
    plain = {_plain(key): tensor for key, tensor in state.items()}
    found = {key: tensor.float() for key, tensor in plain.items() if key not in NO_PARAMETERS}
    check_finite(f"weights folder {folder}: {TENSORS}", found)
    return found


def _plain(key: str) -> str:
    name = key[found.end() :] if (found := PREFIX.match(key)) else key
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def read_vocabulary_text(folder: Path) -> str:
    """The words of a folder's encoder as the text of a vocab.txt. Raises WeightsError if they cannot be read."""
    return _words(folder)[0]


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that are read, always in the same order."""
    names = (CONFIG, TENSORS, _words_file(folder).name, TOKENIZER)
    return tuple(file for name in names if (file := folder / name).is_file())


def folder_digest(folder: Path) -> str:
    """The first 16 hex digits of a sha256 over the files that are read. Raises WeightsError if one is missing."""
    _check(folder)
    found = hashlib.sha256()
    for path in files_in(folder):
        with path.open("rb") as file:
            found.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return found.hexdigest()[:16]


def folder_state(folder: Path) -> tuple[int, ...]:
    """Sizes and times of change of the files that are read: equal if the folder is as it was."""
    _check(folder)
    facts = [file.stat() for file in files_in(folder)]
    return tuple(number for fact in facts for number in (fact.st_mtime_ns, fact.st_size))


def _check(folder: Path) -> None:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WeightsError(f"weights {folder} {what}, and encoders of texts have a folder of weights; {WHAT_TO_GIVE}")
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if not _words_file(folder).is_file():
        missing.append(f"{WORDS} or {WORDS_IN_JSON}")
    if missing:
        raise WeightsError(f"weights folder {folder} lacks {', '.join(missing)}; {WHAT_TO_GIVE}")


def _words_file(folder: Path) -> Path:
    return folder / (WORDS if (folder / WORDS).is_file() else WORDS_IN_JSON)


def _words(folder: Path) -> tuple[str, bool]:
    """The words as the text of a vocab.txt, and whether case and accents are stripped."""
    _check(folder)
    file = _words_file(folder)
    if file.name == WORDS:
        try:
            return file.read_bytes().decode(), _lowercases(folder, otherwise=True)
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(f"weights folder {folder}: {WORDS} is no text in UTF-8 ({error}); {WHAT_TO_GIVE}") from None
    content = _read_json(folder, file.name)
    try:
        text, lowercase = read_words(content)
    except ValueError as error:
        raise WeightsError(
            f"weights folder {folder}: in {WORDS_IN_JSON}, {error}; give the weights of an encoder that reads words as BERT does"
        ) from None
    if (stated := _lowercases(folder, otherwise=lowercase)) != lowercase:
        raise WeightsError(
            f"weights folder {folder}: {WORDS_IN_JSON} has normalizer.lowercase {lowercase}, and {TOKENIZER} do_lower_case "
            f"{stated}; write into both what the encoder was trained with"
        )
    return text, lowercase


def _read_config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir() or (folder / CONFIG).is_file():
        # Of another architecture, the other files may have other names.
        config = _read_json(folder, CONFIG) if folder.is_dir() else {}
        if config.get("model_type", "bert") != "bert":
            return config
    _check(folder)
    return _read_json(folder, CONFIG)


def _lowercases(folder: Path, *, otherwise: bool) -> bool:
    """Whether case and accents are stripped, as tokenizer_config.json says, if it does."""
    tokenizer = _read_json(folder, TOKENIZER) if (folder / TOKENIZER).is_file() else {}
    lowercase = bool(tokenizer.get("do_lower_case", otherwise))
    strips = tokenizer.get("strip_accents")
    if strips not in (None, lowercase) or tokenizer.get("tokenize_chinese_chars", True) is not True:
        raise WeightsError(
            f"weights folder {folder}: {TOKENIZER} parts words otherwise than BERT (strip_accents {strips!r}, "
            f"tokenize_chinese_chars {tokenizer.get('tokenize_chinese_chars')!r}), which is not read; allowed: null and true"
        )
    return lowercase


def _read_json(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"weights folder {folder}: {name} is no JSON ({error}); {WHAT_TO_GIVE}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"weights folder {folder}: {name} holds a {type(content).__name__}, not an object; {WHAT_TO_GIVE}")
    return content
