"""The evidence of a paired test of two models, for every task, and the words that all tests share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heads.tasks.rows import Scored

LEVEL = 0.95

# One target of a score table: its rows by digest and truth, so that each distinct image counts once.
Rows = Mapping[tuple[str, str], Scored]


@dataclass(frozen=True)
class Policy:
    """The rules of promotion: the measure `<target>/<measure>`, the smallest gain in it, and the level of the paired test."""

    metric: str
    min_gain: float = 0.0
    alpha: float = 0.05


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


def is_better(gain: float, p_value: float, policy: Policy) -> bool:
    """Whether a gain is positive, and significant at the policy's level."""
    return p_value < policy.alpha and gain > 0


def describe_test(test: str, gain: float, p_value: float, policy: Policy) -> str:
    """How a test came out, in words: 'exact McNemar p = 0.012, below alpha 0.05'."""
    shown = f"= {p_value:.3f}" if p_value >= 0.001 else "< 0.001"
    if is_better(gain, p_value, policy):
        outcome = f"below alpha {policy.alpha:g}"
    elif p_value < policy.alpha:
        outcome = f"below alpha {policy.alpha:g}, but for the worse"
    else:
        outcome = f"not below alpha {policy.alpha:g}"
    return f"{test} p {shown}, {outcome}"
