"""A look at work in progress, from a thread beside it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def watching(watch: Callable[[], None], every_seconds: float) -> Iterator[None]:
    """Call `watch` again and again in the block, from a thread; its errors are logged, and the block goes on."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_seconds):
            try:
                watch()
            except Exception as error:
                LOG.warning("progress is not shown now, the work goes on: %s", error)

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
