"""The gate: which variant is the candidate, and whether the evidence makes it the champion. Pure."""

from flows.gate.account import Account
from flows.gate.case import Case
from flows.gate.classes import load_statistics
from flows.gate.evidence import Policy
from flows.gate.fresh import FreshAccount
from flows.gate.guards.negative_flips import flipped
from flows.gate.ranking import choose
from flows.gate.rules import decide, decide_by_trials
from flows.gate.silence import is_silent, told_measures
from flows.gate.trials import Serving, Trials

__all__ = [
    "Account",
    "Case",
    "FreshAccount",
    "Policy",
    "Serving",
    "Trials",
    "choose",
    "decide",
    "decide_by_trials",
    "flipped",
    "is_silent",
    "load_statistics",
    "told_measures",
]
