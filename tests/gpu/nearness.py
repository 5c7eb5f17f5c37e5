"""How near two results are, said as it is asserted: `-s` shows the gaps that were measured."""

from __future__ import annotations

import sys


def assert_near(what: str, gap: float, tolerance: float) -> None:
    """Asserts that a gap is below its tolerance."""
    sys.stdout.write(f"gap of {what}: {gap:.1e}, at most {tolerance:.0e}\n")
    assert gap < tolerance, f"{what}: {gap:.2e} is not below {tolerance:.0e}"
