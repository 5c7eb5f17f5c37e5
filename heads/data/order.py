"""The order in which samples are forwarded, where that is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def by_length(samples: Sequence[T], length: Callable[[T], int]) -> list[T]:
    """Samples from short to long: those of like length then share a batch, which costs as much as its longest one.

    Samples of one length, such as images, stay in their order.
    """
    return sorted(samples, key=length)
