"""What is measured of a candidate besides its score table, since a table of answers cannot tell it. Pure values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.leak_records import Leaks


@dataclass(frozen=True)
class Serving:
    """What serving a bundle costs, measured on one machine, alternating with the other: a sample's seconds, and its bytes."""

    seconds: tuple[float, ...]
    num_bytes: int


@dataclass(frozen=True)
class Robustness:
    """Whether each sample is read rightly, 1 or 0, by the name of what was done to it; `clean` is nothing.

    Attacks are of the first samples only; `losses` are those of the samples at the `start` and the `end` of the stronger PGD.
    """

    right: Mapping[str, Sequence[float]]
    losses: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Trials:
    """The trials of a candidate; of what was not measured a field is None, and its guard gives no finding.

    `serving` is of the candidate and of the champion (None: there is no champion). `load_failure` says in words why the
    bundle cannot be used where it is served, '' if it can. `robustness` is of the candidate and of the champion, on the same
    samples. `leaks` are the pictures of the holdout that are also trained or ranked on.
    """

    serving: tuple[Serving, Serving | None] | None = None
    load_failure: str | None = None
    robustness: tuple[Robustness, Robustness | None] | None = None
    leaks: Leaks | None = None
