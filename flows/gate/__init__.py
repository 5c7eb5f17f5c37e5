"""The gate: which variant is the candidate, and whether the evidence makes it the champion. Pure."""

from flows.gate.evidence import Policy
from flows.gate.rules import choose, decide

__all__ = ["Policy", "choose", "decide"]
