"""An answer and its truth, as a row that outlives the model. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scored:
    """One model's answer on one target of one holdout sample, with the truth.

    For a class: true and predicted class, and the latter's probability. For labels (`multilabel`): both as `a|b` in sorted
    order, and every label's probability in `probabilities`. For a mask: its file and '', and in `pixels` the count of each (true
    value, predicted value), ignored values left out; `probability` is then the share of pixels that are right. For tags: both as
    cells, in `pixels` the count of spans of each (true type, predicted type), '' on the side that has no such span, and the share
    of words that are right.
    """

    digest: str
    target: str
    truth: str
    predicted: str
    probability: float
    probabilities: Mapping[str, float] = field(default_factory=dict)
    pixels: tuple[tuple[str, str, int], ...] = ()
