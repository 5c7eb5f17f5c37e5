"""The watch of `headstart up`: parts that died are started again, a few times, and errors in their logs are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flows.errors import HeadstartError
from flows.stack.logs import Log
from flows.words import Say

EVERY_SECONDS = 1.0
# A part may be started again so many times within so many seconds.
MAX_RESTARTS = 3
WITHIN_SECONDS = 900.0


@dataclass
class StackServer:
    """A server of the stack: its name, a function that says what it died of (None while it lives), and one that restarts it."""

    name: str
    death: Callable[[], str | None]
    revive: Callable[[], None]
    restarts: list[float] = field(default_factory=list)


def look(parts: Sequence[StackServer], say: Say, changed: Callable[[], None]) -> None:
    """Start again each part that is dead, and call `changed` after each. Raises HeadstartError if one died too often."""
    for part in parts:
        if (death := part.death()) is None:
            continue
        now = time.monotonic()
        part.restarts = [moment for moment in part.restarts if now - moment < WITHIN_SECONDS]
        if len(part.restarts) >= MAX_RESTARTS:
            raise HeadstartError(
                f"{part.name} died again ({death}) after {MAX_RESTARTS} new starts within {WITHIN_SECONDS / 60:.0f} minutes; "
                "all of the stack has ended: look into what it says above, and start it again"
            )
        part.restarts.append(now)
        say(f"{part.name} died ({death}); starting it again ({len(part.restarts)} of {MAX_RESTARTS})")
        part.revive()
        say(f"{part.name} is there again, {time.monotonic() - now:.0f} s later")
        changed()


def watch(
    parts: Sequence[StackServer],
    logs: Sequence[Log],
    say: Say,
    *,
    changed: Callable[[], None],
    tidy: Callable[[], None],
    tidy_seconds: float = 30.0,
) -> None:
    """Watch the parts and the logs until interrupted; `tidy` is called every `tidy_seconds`."""
    tidied_at = time.monotonic()
    while True:
        time.sleep(EVERY_SECONDS)
        for log in logs:
            log.look()
        look(parts, say, changed)
        if time.monotonic() - tidied_at > tidy_seconds:
            tidy()
            tidied_at = time.monotonic()
