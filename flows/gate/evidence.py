"""The evidence of a paired test of two models, for every task, and the words that all tests share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heads.tasks.rows import Scored

if TYPE_CHECKING:
    from flows.records import Severity

LEVEL = 0.95

# One target of a score table: its rows by digest and truth, so that each distinct image counts once.
Rows = Mapping[tuple[str, str], Scored]


@dataclass(frozen=True)
class Policy:
    """The rules of promotion: the measure `<target>/<measure>`, the smallest gain in it, and `alpha`.

    A first model is tested at `alpha` against a constant answer. Against a champion `alpha` is what a year of challengers that
    are no better may cost: the chance that any of them is promoted. `flows.gate.account` shares it among the looks. `guards` says
    what each guard that a plan may choose can do; one that is not named is off. With a `margin` a challenger need not be better:
    it must not be worse by as much. `max_slowdown` is how many times as long as the champion it may take to serve.
    """

    metric: str
    min_gain: float = 0.0
    alpha: float = 0.05
    guards: Mapping[str, Severity] = field(default_factory=dict)
    margin: float | None = None
    max_slowdown: float = 1.5


@dataclass(frozen=True)
class Evidence:
    """A paired test: its figures (`gain` and `p_value` among them), a sentence on it, and in `limits` why it may prove little.

    `value` and `old` are the plan's measure of the candidate and of the champion (None: there is no champion), `opponent`
    names, in words, what the candidate was compared with.
    """

    figures: Mapping[str, float]
    words: str
    value: float
    old: float | None
    opponent: str
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level:
    """What a one-sided p-value has to be below, and what to call it."""

    value: float
    words: str


def one_sided(p_value: float, gain: float) -> float:
    """The chance of such a gain or a greater one between equal models, from the two-sided p-value of no difference."""
    if gain == 0:
        return 1.0
    return p_value / 2 if gain > 0 else 1 - p_value / 2


def above_or_not(value: float, passed: bool, most: float) -> str:
    """How a value compares with a bound, in words; if it passed above the bound, its interval reaches down to the bound."""
    return f"at most {most:g}" if value <= most else f"{'not proven ' if passed else ''}above {most:g}"


def describe_p(p_value: float) -> str:
    """A p-value in words: 'p = 0.012', or 'p < 0.001'."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def describe_test(test: str, gain: float, p_value: float, level: Level) -> str:
    """How a one-sided test came out, in words: 'exact McNemar p = 0.012, below alpha 0.05'."""
    below = "below" if p_value < level.value else "not below"
    return f"{test} {describe_p(p_value)}, {below} {level.words}{', and for the worse' if gain < 0 else ''}"
