"""What the later stages load, loaded while the flow waits for its cluster: else each would wait for it in turn."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def loading_ahead() -> Iterator[None]:
    """Load in the block, from a thread, the statistics of the gate, what draws pictures, and what exports a candidate."""
    thread = threading.Thread(target=_load, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Two threads that import the same at once may each find it half.
        thread.join()


def _load() -> None:
    from flows import gate, pictures, registry

    for load in (gate.load_statistics, registry.load_exporter, lambda: pictures.leaderboard(["nothing"], [0.0], "")):
        try:
            load()
        except Exception as error:
            # The stage that needs it meets the same error, and raises it.
            LOG.info("not loaded ahead: %s", error)
