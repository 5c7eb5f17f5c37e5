"""Words of a closed set in a plan: refused with the set, and with the word that was meant, if one is near."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def suggestion(word: str, allowed: Collection[str]) -> str:
    """The words 'did you mean ...? ' if an allowed word is near, else ''."""
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? " if near else ""


def known(kind: str, word: str, allowed: Collection[str]) -> str:
    """The word, if it is allowed. Raises ValueError with the `kind` of word and those that are allowed."""
    if word not in allowed:
        raise ValueError(f"{kind} {word!r} is unknown; {suggestion(word, allowed)}allowed: {', '.join(allowed)}")
    return word
