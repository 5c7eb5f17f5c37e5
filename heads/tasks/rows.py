"""An answer beside the truth, as a row that outlives the model. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scored:
    """One target of one holdout sample as one model read it.

    A class: truth, what was predicted and its probability. Labels (`multilabel`): both as `a|b` in sorted order, and every
    label's probability in `probabilities`. A mask: its file and '', and in `pixels` the count of each (true value, predicted
    value), ignored values left out; `probability` is then the share of pixels that are right.
    """

    digest: str
    target: str
    truth: str
    predicted: str
    probability: float
    probabilities: Mapping[str, float] = field(default_factory=dict)
    pixels: tuple[tuple[str, str, int], ...] = ()
