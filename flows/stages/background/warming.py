"""A local Ray, and a driver on it, started while a command still loads: the flow's session finds both."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from flows import cluster, job
from flows.errors import HeadstartError
from flows.records import Workers
from flows.settings import Settings

CLEAR_SECONDS = 1.0


class Warm:
    """A local Ray that a thread starts, with a driver that waits for the first job; `join` waits for both."""

    def __init__(self, settings: Settings, name: str, workers: Workers) -> None:
        self.handover = cluster.Handover()
        self._settings, self._name, self._workers, self._held = settings, name, workers, contextlib.ExitStack()
        self._folder = job.new_folder(settings.root)
        self._thread = threading.Thread(target=self._start, name="warm")
        self._thread.start()

    def _start(self) -> None:
        num_cpus = self._workers.fewest * self._workers.cpus_per_worker
        with contextlib.suppress(HeadstartError, OSError):  # the session meets the same error and raises it
            ray = self._held.enter_context(cluster.open_cluster(None, self._settings.storage, num_cpus=num_cpus))
            self._held.callback(self.handover.end)
            self.handover.begin(ray, self._folder, self._name)

    def join(self) -> None:
        """Wait until Ray and the driver were started, or could not be."""
        self._thread.join()

    def end(self) -> None:
        """End the driver, if it waits, and Ray, unless another process uses it."""
        self.join()
        self._held.close()
        with contextlib.suppress(HeadstartError, OSError):
            # A driver that ends clears its folder, but cannot where its Ray was ended first.
            end_at = time.monotonic() + CLEAR_SECONDS
            while self._folder.place.facts() and time.monotonic() < end_at:
                time.sleep(0.05)
            self._folder.place.clear()


_WARM: ContextVar[Warm | None] = ContextVar("warm", default=None)


def warm() -> Warm | None:
    """What is started for the block that this is called in, None if nothing is."""
    return _WARM.get()


@contextlib.contextmanager
def warming(settings: Settings, name: str, workers: Workers) -> Iterator[None]:
    """Start a local Ray and a driver for a model name, if the settings name no cluster, while the block starts other things."""
    if settings.ray_address:
        yield
        return
    started = Warm(settings, name, workers)
    token = _WARM.set(started)
    try:
        yield
    finally:
        _WARM.reset(token)
        started.end()
