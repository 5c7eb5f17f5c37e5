"""The gate: which variant is the candidate, and whether the evidence makes it the champion. Pure."""

from flows.gate.classes import Pairs, mcnemar, paired_interval, wilson_interval
from flows.gate.evidence import Policy
from flows.gate.ranking import Ranking, choose, rank
from flows.gate.rules import decide

__all__ = [
    "Pairs",
    "Policy",
    "Ranking",
    "choose",
    "decide",
    "mcnemar",
    "paired_interval",
    "rank",
    "wilson_interval",
]
