"""The words of an encoder in a tokenizer.json, which the library `tokenizers` writes, if they are WordPiece's, as BERT's are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What is the same in every file that is read, by its place in the file. Early files leave out the model's type.
FIXED: Mapping[tuple[str, str], object] = {
    ("model", "type"): "WordPiece",
    ("model", "unk_token"): "[UNK]",
    ("model", "continuing_subword_prefix"): "##",
    ("model", "max_input_chars_per_word"): 100,
    ("normalizer", "type"): "BertNormalizer",
    ("normalizer", "clean_text"): True,
    ("normalizer", "handle_chinese_chars"): True,
    ("pre_tokenizer", "type"): "BertPreTokenizer",
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_words(content: Mapping[str, Any]) -> tuple[str, bool]:
    """The words as the text of a vocab.txt, a token a line in the order of their ids, and whether case and accents are stripped.

    Raises ValueError with what it is in the file that is not read, and what is allowed.
    """
    for (part, name), wanted in FIXED.items():
        given = _part(content, part).get(name, wanted if name == "type" and part == "model" else None)
        if given != wanted:
            raise ValueError(_refusal(f"{part}.{name}", given, repr(wanted)))
    normalizer = _part(content, "normalizer")
    lowercase, strips = normalizer.get("lowercase"), normalizer.get("strip_accents")
    if not isinstance(lowercase, bool):
        raise ValueError(_refusal("normalizer.lowercase", lowercase, "True or False"))
    if strips not in (None, lowercase):
        raise ValueError(_refusal("normalizer.strip_accents", strips, f"None, or {lowercase} as normalizer.lowercase is"))
    added = [token.get("content") for token in content.get("added_tokens") or () if isinstance(token, dict)]
    if others := [token for token in added if token not in SPECIAL]:
        raise ValueError(_refusal("added_tokens", others[0], ", ".join(SPECIAL)))
    return _in_lines(_part(content, "model").get("vocab")), lowercase


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def _in_lines(ids: object) -> str:
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise ValueError("model.vocab is no object of tokens with their ids")
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"the ids in model.vocab are not 0 to {len(tokens) - 1}, each once")
    if broken := next(filter(re.compile("[\r\n]").search, tokens), None):
        raise ValueError(f"the token {broken!r} in model.vocab ends a line, which no token of BERT does")
    return "".join(f"{token}\n" for token in tokens)


def _refusal(name: str, given: object, allowed: str) -> str:
    return f"{name} is {given!r}, which is not read; allowed: {allowed}"
