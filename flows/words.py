"""Words for people: numbers of things, lists, digests and long texts in words, and what says them."""

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


def start_of(text: str, most: int) -> str:
    """A text, or its first words with dots behind them, if it has more characters than that."""
    if len(text) <= most:
        return text
    words = text[: most + 1].rsplit(maxsplit=1)
    return f"{words[0] if len(words) > 1 else text[:most]} ..."


def end_of(text: str, most: int) -> str:
    """A text, or, if it has more characters, its last whole lines with dots before them; of one long line its last words."""
    if len(text) <= most:
        return text
    before, end = text[-most - 1], text[-most:]
    for gap in ("\n", " "):
        if before == gap or gap in end:
            return f"... {end if before == gap else end.partition(gap)[2]}"
    return f"... {end}"
