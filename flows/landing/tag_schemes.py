"""Other schemes of tags than BIO, which mark the same spans by other letters, and their tags in BIO. Pure.

IOB1 is that of Ramshaw and Marcus, "Text Chunking using Transformation-Based Learning", 1995; BILOU that of Ratinov and Roth,
"Design Challenges and Misconceptions in Named Entity Recognition", 2009, of which BIOES and BMES are spellings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from heads.tasks.bio import BEGIN, INSIDE, OUTSIDE, find_fault

BIO = "BIO"
IOB1 = "IOB1"
# What a word within a span, its last one, and the one word of a short span begin with.
_ENDED: Mapping[str, tuple[str, str, str]] = {
    "BIOES": ("I-", "E-", "S-"),
    "BILOU": ("I-", "L-", "U-"),
    "BMES": ("M-", "E-", "S-"),
}
# So many more sentences must be IOB1 than BIO.
_MANY = 5
_TAG = re.compile(r"O|[BIESLUM]-\S+")


def is_tag(text: str) -> bool:
    """Whether this is a tag of one of the schemes."""
    return _TAG.fullmatch(text) is not None


def scheme_of(sentences: Sequence[Sequence[str]]) -> str:
    """The scheme in which most of the sentences, given by their tags, are well formed; BIO if no other has more.

    A few sentences are not enough for IOB1, since a B that was forgotten makes any BIO look like it.
    """
    num_bio = _count_well_formed(sentences, BIO)
    if num_bio == len(sentences):
        return BIO
    others = {scheme: _count_well_formed(sentences, scheme) for scheme in (IOB1, *_ENDED)}
    if others[IOB1] - num_bio < _MANY:
        del others[IOB1]
    best = max(others, key=lambda scheme: others[scheme])
    return best if others[best] > num_bio else BIO


def _count_well_formed(sentences: Sequence[Sequence[str]], scheme: str) -> int:
    return sum(to_bio(tags, scheme)[1] is None for tags in sentences)


def to_bio(tags: Sequence[str], scheme: str) -> tuple[list[str], str | None]:
    """A sentence's tags in BIO, and what keeps them from being of the scheme, in words; None if they are."""
    if scheme == BIO:
        return list(tags), find_fault(tags)
    bio: list[str] = []
    before = OUTSIDE
    for number, tag in enumerate(tags, 1):
        letter = _letter_in_iob1(tag, before) if scheme == IOB1 else _letter(tag, before, *_ENDED[scheme])
        if letter is None:
            return bio, f"its tag {number}, {tag!r}, cannot follow {before!r}{_of(scheme)}"
        bio.append(letter + tag[2:] if letter else OUTSIDE)
        before = tag
    if scheme != IOB1 and before.startswith((BEGIN, _ENDED[scheme][0])):
        return bio, f"its last span, of the tag {before!r}, has no end{_of(scheme)}"
    return bio, None


def _of(scheme: str) -> str:
    return f" in tags of the scheme {scheme}, in which most of the source's sentences are"


def _letter_in_iob1(tag: str, before: str) -> str | None:
    """What a tag begins with in BIO, '' for O; None if it cannot follow. Only a span right behind one of its type has a B."""
    goes_on = before != OUTSIDE and before[2:] == tag[2:]
    if tag == OUTSIDE:
        return ""
    if len(tag) < 3 or not (tag.startswith(INSIDE) or (tag.startswith(BEGIN) and goes_on)):
        return None
    return INSIDE if tag.startswith(INSIDE) and goes_on else BEGIN


def _letter(tag: str, before: str, inside: str, end: str, single: str) -> str | None:
    """What a tag begins with in BIO, '' for O; None if it cannot follow, in a scheme that marks the ends of spans."""
    is_open = before.startswith((BEGIN, inside))
    if tag == OUTSIDE:
        return None if is_open else ""
    if len(tag) > 2 and tag.startswith((BEGIN, single)):
        return None if is_open else BEGIN
    if len(tag) > 2 and tag.startswith((inside, end)):
        return INSIDE if is_open and before[2:] == tag[2:] else None
    return None
