"""What baselines that count words have in common: they answer for one target, and read texts by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heads.spec import Head


@dataclass(frozen=True, eq=False)
class OfOneTarget:
    """A model of one target, with the names of its classes, labels or tags."""

    head: Head
    names: tuple[str, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its one target."""
        return (self.head,)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The names of its classes, labels or tags."""
        return {self.head.target: self.names}

    @property
    def thresholds(self) -> Mapping[str, tuple[float, ...]]:
        """The probability from which on each label is predicted, if it has labels."""
        return {}
