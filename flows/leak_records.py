"""Leaks of a holdout, as values that travel from room to room."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leak:
    """A test image, by its digest and file, and the file of `train` or `val` that shows the same picture."""

    digest: str
    file: str
    twin: str
    split: str
    likeness: float


@dataclass(frozen=True)
class Leaks:
    """The leaks of a holdout of `num_samples` images, closest first; `num_small` images were too small to be compared."""

    num_samples: int
    num_small: int
    found: tuple[Leak, ...]
