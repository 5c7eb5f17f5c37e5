"""Tags of words in the BIO scheme, and the spans that they mark. No torch here.

`B-x` begins a span of type x, `I-x` goes on with it, `O` is outside of all. After Ramshaw and Marcus, "Text Chunking using
Transformation-Based Learning", 1995, in the form of which each span begins with a B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

# How a cell of tags begins in a manifest, as a class's name never does.
MARK = "tags: "
OUTSIDE = "O"
BEGIN, INSIDE = "B-", "I-"


class Span(NamedTuple):
    """Words of one type, from number `start` to before `end`."""

    type: str
    start: int
    end: int


def write_cell(tags: Sequence[str]) -> str:
    """The cell of a sentence's tags."""
    return MARK + " ".join(tags)


def read_cell(cell: str) -> list[str]:
    """The tags of a cell that `write_cell` wrote."""
    return cell.removeprefix(MARK).split(" ")


def is_cell(cell: str) -> bool:
    """Whether a cell is one of tags."""
    return cell.startswith(MARK)


def tag_names(types: Iterable[str]) -> tuple[str, ...]:
    """The tags of some types in the order of a head's outputs: O, then of each type, sorted, its B and its I."""
    return (OUTSIDE, *(prefix + name for name in sorted(set(types)) for prefix in (BEGIN, INSIDE)))


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError if these are not the names of `tag_names`."""
    if tuple(names) != tag_names(types_in(names)):
        raise ValueError(f"the tags {', '.join(names)} are not O, then B-<type> and I-<type> of each type in order")


def types_in(tags: Iterable[str]) -> set[str]:
    """The types of the spans that tags speak of."""
    return {tag[2:] for tag in tags if tag != OUTSIDE}


def find_fault(tags: Sequence[str]) -> str | None:
    """What keeps tags from being of the BIO scheme, in words; None if they are."""
    before = OUTSIDE
    for number, tag in enumerate(tags, 1):
        if tag != OUTSIDE and (tag[:2] not in (BEGIN, INSIDE) or len(tag) < 3):
            return f"its tag {number} is {tag!r}; allowed: O, B-<type> and I-<type> (BIO)"
        if tag.startswith(INSIDE) and before[2:] != tag[2:]:
            return (
                f"its tag {number}, {tag!r}, goes on with a span of {tag[2:]!r} that the tag before it, {before!r}, is not in; "
                f"write the first tag of each span as 'B-{tag[2:]}' (BIO)"
            )
        before = tag
    return None


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans in order, as `conlleval` and seqeval's default mode read them: an I that goes on with nothing begins one."""
    found: list[Span] = []
    start, before = 0, OUTSIDE
    for number, tag in enumerate((*tags, OUTSIDE)):
        goes_on = tag.startswith(INSIDE) and before[2:] == tag[2:]
        if not goes_on:
            if before != OUTSIDE:
                found.append(Span(before[2:], start, number))
            start = number
        before = tag
    return found
