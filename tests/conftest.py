"""Test files that run side by side share the cores: else their threads wait for each other, and busily."""

from __future__ import annotations

import os

NUM_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Before torch is imported, here or by what tests start.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // NUM_PROCESSES)))
