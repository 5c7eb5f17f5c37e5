"""Weights of encoders of texts: a folder in Hugging Face's layout, with config.json, model.safetensors and vocab.txt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from heads.backbones.bert import EPSILON
from heads.bert_size import BertSize
from heads.errors import WeightsError

CONFIG, TENSORS, WORDS, TOKENIZER = "config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"
NEEDED = (CONFIG, TENSORS, WORDS)
WHAT_TO_GIVE = f"give a folder with {', '.join(NEEDED)}, as Hugging Face's `save_pretrained` writes it"
# What is the same in every encoder that is read, by its name in config.json and with what is meant where it is left out.
FIXED: Mapping[str, object] = {"hidden_act": "gelu", "position_embedding_type": "absolute", "layer_norm_eps": EPSILON}
# No parameters, but the numbers of places, written by some versions.
NO_PARAMETERS = ("embeddings.position_ids",)
PREFIX = "bert."


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
    try:
        size = BertSize(
            num_layers=int(config["num_hidden_layers"]),
            channels=int(config["hidden_size"]),
            num_heads=int(config["num_attention_heads"]),
            num_hidden=int(config["intermediate_size"]),
            num_tokens=int(config["vocab_size"]),
            num_positions=int(config["max_position_embeddings"]),
            num_types=int(config["type_vocab_size"]),
            cased=not _lowercases(folder),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"weights folder {folder}: {CONFIG} does not tell the encoder's size ({error}); {WHAT_TO_GIVE}"
        ) from None
    if not size.is_possible:
        raise WeightsError(f"weights folder {folder}: {CONFIG} tells of {size.name}, which cannot be built; {WHAT_TO_GIVE}")
    num_words = read_vocabulary_text(folder).count("\n")
    if num_words > size.num_tokens:
        raise WeightsError(
            f"weights folder {folder}: {WORDS} holds {num_words} tokens, and {CONFIG} tells of {size.num_tokens}; {WHAT_TO_GIVE}"
        )
    return size


def read_state(folder: Path) -> dict[str, Tensor]:
    """The encoder's parameters in float32, under the names of `BertModel`. Raises WeightsError if they cannot be read."""
    _check(folder)
    try:
        state = safetensors.torch.load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weights folder {folder}: {TENSORS} could not be read ({error}); {WHAT_TO_GIVE}") from None
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    return {key: tensor.float() for key, tensor in plain.items() if key not in NO_PARAMETERS}


def read_vocabulary_text(folder: Path) -> str:
    """The content of a folder's vocab.txt. Raises WeightsError if it is no text."""
    _check(folder)
    try:
        return (folder / WORDS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"weights folder {folder}: {WORDS} is no text in UTF-8 ({error}); {WHAT_TO_GIVE}") from None


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that are read, always in the same order."""
    return tuple(file for name in (*NEEDED, TOKENIZER) if (file := folder / name).is_file())


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
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise WeightsError(f"weights folder {folder} lacks {', '.join(missing)}; {WHAT_TO_GIVE}")


def _read_config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir() or (folder / CONFIG).is_file():
        # Of another architecture, the other files may have other names.
        config = _read_json(folder, CONFIG) if folder.is_dir() else {}
        if config.get("model_type", "bert") != "bert":
            return config
    _check(folder)
    return _read_json(folder, CONFIG)


def _lowercases(folder: Path) -> bool:
    if not (folder / TOKENIZER).is_file():
        return True
    tokenizer = _read_json(folder, TOKENIZER)
    lowercase = bool(tokenizer.get("do_lower_case", True))
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
