"""The outcome of a job, as a value and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class JobOutcome:
    """The outcome of a job.

    A training has the keys of the works that it trained and of those found done, the number of samples forwarded through
    variants and trunks, the seconds from its first batch to its last, the multiply-adds of filling the feature store, and the
    number of samples and masks that its members fetched. A scoring has the file of each bundle's score table, by its path, and
    the number of samples forwarded through their backbones.
    """

    trained: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    num_forwarded: int = 0
    seconds: float = 0.0
    flops_stored: int = 0
    num_fetched: int = 0
    scores: Mapping[str, str] | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any], flops_stored: int, num_fetched: int) -> Self:
        """The outcome that `fields` gave, with what the job's members noted."""
        if "scores" in fields:
            return cls(scores=fields["scores"], num_forwarded=fields.get("num_forwarded", 0))
        trained, reused = tuple(fields["trained"]), tuple(fields["reused"])
        return cls(trained, reused, fields["num_forwarded"], fields["seconds"], flops_stored, num_fetched)

    def fields(self) -> dict[str, object]:
        """What the driver writes of it: all but what is noted by the members."""
        names = ("trained", "reused", "num_forwarded", "seconds") if self.scores is None else ("scores", "num_forwarded")
        return {name: getattr(self, name) for name in names}
