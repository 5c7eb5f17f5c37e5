"""Numbers of things in words."""


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words: '1 variant', '2 variants'; the plural is `more`, or `one` with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"
