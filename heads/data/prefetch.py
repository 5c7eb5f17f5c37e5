"""Prefetching: samples are told what is read of them next, so that those on other machines are there before their readers ask."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Prefetching(Protocol):
    """Samples, or their files, that can be fetched before they are read."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Says that the samples of these numbers are read next, in this order."""
        ...


def prefetch(samples: object, indices: Sequence[int]) -> None:
    """Tells samples what is read next, if they can be prefetched."""
    if isinstance(samples, Prefetching):
        samples.prefetch(indices)


def prefetch_places(datasets: Sequence[object], ends: Sequence[int], places: Sequence[int]) -> None:
    """The same of data sets whose samples are numbered on through all of them, each up to its end."""
    for number, (dataset, first) in enumerate(zip(datasets, (0, *ends), strict=False)):
        prefetch(dataset, [place - first for place in places if bisect_right(ends, place) == number])
