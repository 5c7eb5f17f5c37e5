"""What is measured of a candidate besides its score table, since a table of answers cannot tell it. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows.records import Leaks


@dataclass(frozen=True)
class Serving:
    """What serving a bundle costs, measured on one machine, alternating with the other: a sample's seconds, and its bytes."""

    seconds: tuple[float, ...]
    num_bytes: int


@dataclass(frozen=True)
class Trials:
    """The trials of a candidate; each is None until it is measured, and then its guard gives no finding.

    `serving` is of the candidate and of the champion (None: there is no champion). `load_failure` says in words why the bundle
    cannot be used where it is served, '' if it can. `robustness` has figures by name, as its guard reads them. `leaks` are the
    pictures of the holdout that are also trained or ranked on.
    """

    serving: tuple[Serving, Serving | None] | None = None
    load_failure: str | None = None
    robustness: Mapping[str, float] | None = None
    leaks: Leaks | None = None
