"""Whether the candidate's bundle can be used where it is served."""

from __future__ import annotations

from flows.gate.case import Case
from flows.records import Finding


def loads(case: Case) -> Finding | None:
    """Whether the bundle loads in a consumer's process and answers there as it was scored; None until that is tried."""
    failure = case.trials.load_failure
    if failure is None:
        return None
    if failure:
        return Finding("loads", False, f"the bundle cannot be used where it is served: {failure}")
    return Finding("loads", True, "the bundle loads in a consumer's process, and answers there as it was scored")
