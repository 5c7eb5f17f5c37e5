"""The keys of stored features: trunk ids, and sample keys packed so that a million of them are found at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadsError

FORMAT = 1
MAX_VIEW = 2**32 - 1
# Of samples that are stored token by token: a token's number is part of its key's view, above that of the sample.
MAX_VIEWS = 2**16
# The digest's 16 bytes and the view's 4, big-endian: numpy compares such strings bytewise.
PACKED = np.dtype("S20")

Packed = NDArray[np.bytes_]


class Key(NamedTuple):
    """A sample's digest (32 hex digits) and the number of one of its views: 0 is plain, others are augmented."""

    digest: str
    view: int = 0


def trunk_id(parts: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a trunk by everything that changes what it gives.

    `parts` are JSON values: backbone, weights digest, cut, preprocessing, image size, dtype, augmentation, the versions of
    the libraries that compute. The order of keys does not matter. Raises HeadsError on a value that is no JSON.
    """
    try:
        text = json.dumps({"format": FORMAT, "parts": parts}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HeadsError(f"the parts of a trunk must be JSON values: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def token_keys(keys: Iterable[Key], lengths: Iterable[int]) -> list[Key]:
    """The keys of all tokens of samples with these keys and numbers of tokens, sample by sample; token 0 has the sample's own."""
    counted = zip(keys, lengths, strict=True)
    return [Key(digest, view + MAX_VIEWS * token) for (digest, view), length in counted for token in range(length)]


def count_samples(keys: Packed) -> int:
    """How many distinct samples have a key among these: tokens but the first are left out."""
    views = np.unique(keys).view(np.uint8).reshape(-1, PACKED.itemsize)[:, 16:]
    return int((np.ascontiguousarray(views).view(">u4") < MAX_VIEWS).sum())


def pack(keys: Sequence[Key]) -> Packed:
    """The keys (n) as strings of 20 bytes. Raises HeadsError on an invalid digest or view."""
    digests, views = [key[0] for key in keys], [key[1] for key in keys]
    try:
        content = bytes.fromhex("".join(digests))
    except (TypeError, ValueError):
        content = b""
    if len(content) != 16 * len(keys) or not set(map(len, digests)) <= {32}:
        wrong = next(digest for digest in digests if not _is_digest(digest))
        raise HeadsError(f"{wrong!r} is no sample digest; it has 32 hex digits")
    if views and (min(views) < 0 or max(views) > MAX_VIEW):
        raise HeadsError(f"views run from {min(views)} to {max(views)}; a view is a number from 0 to {MAX_VIEW}")
    packed = np.empty((len(keys), PACKED.itemsize), np.uint8)
    packed[:, :16] = np.frombuffer(content, np.uint8).reshape(-1, 16)
    packed[:, 16:] = np.array(views, ">u4").reshape(-1, 1).view(np.uint8)
    return packed.reshape(-1).view(PACKED)


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdefABCDEF")
