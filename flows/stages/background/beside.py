"""Work in a thread beside a stage of a retraining that needs nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Beside:
    """Work that runs beside the caller from now on; it gets an event that is set when it is to stop."""

    def __init__(self, work: Callable[[threading.Event], object]) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beside")
        self._done = self._pool.submit(work, self._stop)

    def join(self) -> None:
        """Wait for the work, and raise what it raised."""
        self._done.result()

    def leave(self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: object) -> None:
        """At the end of a `with` block: wait for the work, which is to stop if the block was interrupted; raise nothing."""
        if kind is not None and not issubclass(kind, Exception):
            self._stop.set()
        self._pool.shutdown()
