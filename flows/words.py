"""Numbers of things, and digests, in words."""


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words: '1 variant', '2 variants'; the plural is `more`, or `one` with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def short(digest: str) -> str:
    """The first twelve digits of a digest, enough for a person."""
    return digest.removesuffix(".dir")[:12]
