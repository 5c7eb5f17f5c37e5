"""Samples that share what is equal in them, so that millions fit in memory."""

from __future__ import annotations

from collections.abc import Mapping

from flows.records import Sample


class SharedRows:
    """Makes samples; those with equal labels hold one mapping, and equal splits and groups are one text.

    A sample with one target takes about 300 bytes so, and 1,100 otherwise (tests/benchmarks/scale.py).
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._labels: dict[tuple[tuple[str, str | None], ...], Mapping[str, str | None]] = {}

    def sample(
        self, digest: str, file: str, split: str, labels: Mapping[str, str | None], group: str | None = None, recipe: int = 1
    ) -> Sample:
        """The sample of these values."""
        shared = self._labels.setdefault(tuple(labels.items()), labels)
        return Sample(digest, file, self._shared(split), shared, group and self._shared(group), recipe)

    def _shared(self, text: str) -> str:
        return self._texts.setdefault(text, text)
