"""How texts are prepared, as values: from bytes to letters, and to how many tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heads.errors import TextError

# Ten novels; more is no sample, but a file that landed here by mistake.
MAX_TEXT_BYTES = 16 * 2**20
USUAL_TOKENS = 128
MAX_TOKENS = 2**16
# So many texts of 128 tokens are run together where so many images of 224 px would be one.
TEXTS_FOR_AN_IMAGE = 4


@dataclass(frozen=True)
class TextPreprocess:
    """Texts cut to `max_tokens`, the marks of start and end included; without case and accents if `lowercase`."""

    max_tokens: int
    lowercase: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens {self.max_tokens} must be from 2 to {MAX_TOKENS}")

    def describe(self) -> str:
        """What is done to a text, in a card's words."""
        case = "lower-cased without accents, " if self.lowercase else ""
        return f"a text in Unicode's composed form, {case}cut into pieces of words, of which the first {self.max_tokens} are read"

    def summary(self) -> dict[str, Any]:
        """How many tokens are read at most."""
        return {"max_tokens": self.max_tokens}

    def batch_size(self, most: int) -> int:
        """How many texts a trunk is run on at once: with as many tokens as `TEXTS_FOR_AN_IMAGE * most` of the usual length."""
        return max(1, TEXTS_FOR_AN_IMAGE * min(most, most * USUAL_TOKENS // self.max_tokens))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TextPreprocess:
        """The preprocessing that `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(int(value["max_tokens"]), bool(value["lowercase"]))


def decode_text(source: Path | bytes, name: str = "text") -> str:
    """The text of a file or of bytes in UTF-8, as `compose` gives it. Raises TextError, naming it, if it cannot be read."""
    if isinstance(source, Path):
        name = str(source)
        try:
            if source.stat().st_size > MAX_TEXT_BYTES:
                raise _too_long(name, source.stat().st_size)
            source = source.read_bytes()
        except OSError as error:
            raise TextError(f"{name}: cannot be read ({error.strerror})") from None
    try:
        return compose(source.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise TextError(f"{name}: is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def compose(text: str, name: str = "text") -> str:
    """A text with plain newlines, in Unicode's composed form (NFC), without white space at its ends.

    Raises TextError, naming it, if nothing is left, if it holds NUL bytes, or is much too long.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise _too_long(name, len(text))
    if "\0" in text:
        raise TextError(f"{name}: holds NUL bytes, as no text does; leave it out")
    composed = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not composed:
        raise TextError(f"{name}: is empty")
    return composed


def _too_long(name: str, length: int) -> TextError:
    return TextError(f"{name}: is {length} bytes long; allowed: up to {MAX_TEXT_BYTES}. Cut it into parts")
