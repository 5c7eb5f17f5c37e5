"""Words for people: numbers of things, lists and digests in words, and what says them."""

from collections.abc import Callable, Sequence

# Tells people a line of text: on a terminal, in a log, or both.
Say = Callable[[str], None]


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words: '1 variant', '2 variants'; the plural is `more`, or `one` with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def first_of(words: Sequence[str], most: int) -> str:
    """The first words, and how many more there are: 'a, b and 3 more'."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def short(digest: str) -> str:
    """The first twelve digits of a digest, enough for a person."""
    return digest.removesuffix(".dir")[:12]
