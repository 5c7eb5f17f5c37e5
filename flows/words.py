"""How numbers of things are written for people."""


def counted(number: int, one: str, more: str = "") -> str:
    """So many of a thing: '1 variant', '2 variants'; `more` is what stands there for others than one, else `one` with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"
