"""What every test has: its share of the cores, and the environment of before when it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

NUM_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Test files that run side by side share the cores: else their threads wait for each other, and busily.
# Before torch is imported, here or by what tests start.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // NUM_PROCESSES)))


@pytest.fixture(autouse=True)
def _environment_of_before() -> Iterator[None]:
    """A command sets its process's environment for its tools; the next test starts from the person's again."""
    persons = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(persons)
