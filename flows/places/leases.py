"""Locks in a bucket: leases that their holder renews, made by a conditional put of which one succeeds.

The lock `pets` is a row of objects `pets.00000001`, `pets.00000002`, ... : who puts the next number first has it. Nothing else
of S3 is needed than `If-None-Match: *` and listings that tell all that was written. A lease of a dead process of this machine
is taken at once, one of another machine when it was not renewed for LEASE_SECONDS by the server's own clock.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, repeat
from pathlib import Path

from flows import processes
from flows.errors import HeadstartError
from flows.files import read_value
from flows.places.bucket import Bucket
from flows.places.place import Lock, Place, acquire

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
_NUMBERED = re.compile(r"(.+)\.(\d{8})")


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: in words, its machine, the mark of its process, and a token that no other lease has."""

    words: str = ""
    machine: str = ""
    process: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    renewals: int = 0
    ended: bool = False

    def is_gone(self) -> bool:
        """Whether it has ended, or is known to be dead."""
        return self.ended or (self.machine == _machine() and not processes.lives(self.process))


class Lease:
    """A lease that this process holds and renews, from a thread, until `end`."""

    def __init__(self, place: Bucket, name: str, number: int, holder: Holder) -> None:
        self._place, self._name, self._number, self._holder = place, name, number, holder
        self._renewed_at, self._is_lost, self._stop = time.monotonic(), False, threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises HeadstartError if the lease was not renewed for so long that another process may hold it by now."""
        if self._is_lost or time.monotonic() - self._renewed_at > LEASE_SECONDS:
            raise HeadstartError(
                f"the lock {self._place.address}/{self._name} was lost: it could not be renewed for {LEASE_SECONDS:.0f} s, so "
                "that another process may hold it now. What was trained is kept; run this again"
            )

    def end(self) -> None:
        """Free the lock."""
        self._stop.set()
        self._thread.join(RENEW_SECONDS)
        # If the server is away it ends by itself.
        with suppress(HeadstartError):
            if self._is_last():
                self._write(replace(self._holder, ended=True))

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with suppress(HeadstartError):
                begun = time.monotonic()
                if not self._is_last():
                    self._is_lost = True
                    return
                self._holder = replace(self._holder, renewals=self._holder.renewals + 1)
                self._write(self._holder)
                self._renewed_at = begun

    def _is_last(self) -> bool:
        return max(_numbers(self._place, self._name), default=0) == self._number

    def _write(self, holder: Holder) -> None:
        self._place.write(_numbered(self._name, self._number), json.dumps(asdict(holder)))


class Leases:
    """The locks of a place in a bucket."""

    def __init__(self, place: Place) -> None:
        assert isinstance(place, Bucket)
        self._place = place

    @contextmanager
    def hold(
        self,
        name: str,
        holder: str = "",
        *,
        wait_seconds: float = math.inf,
        every_seconds: float = 0.1,
        on_wait: Callable[[str], None] | None = None,
    ) -> Iterator[Lock]:
        def attempt() -> Lease | str:
            lease = self._try(name, holder)
            return _words(lease) if isinstance(lease, Holder) else lease

        # Longer and longer, since each look is three requests.
        pauses = accumulate(repeat(every_seconds), lambda pause, _: min(2 * pause, self._place.look_seconds))
        lease = acquire(attempt, wait_seconds, pauses, on_wait)
        try:
            yield lease
        finally:
            lease.end()

    def holders(self) -> Mapping[str, str]:
        return {name: _words(holder) for name in self._names() if (holder := self._living(name)[1]) is not None}

    def take_abandoned(self) -> Iterator[str]:
        for name in self._names():
            number, living = self._living(name)
            last = self._read(name, number)
            if living is None and last is not None and not last.ended and isinstance(lease := self._try(name, ""), Lease):
                try:
                    yield name
                finally:
                    lease.end()

    def _try(self, name: str, words: str) -> Lease | Holder:
        """The lease, or who holds it, or was quicker."""
        number, living = self._living(name)
        if living is not None:
            return living
        mine = Holder(words, _machine(), processes.mark())
        goal = _numbered(name, number + 1)
        if not self._place.create(goal, json.dumps(asdict(mine))):
            other = self._read(name, number + 1) or Holder()
            # A put whose answer was lost is put again by its client, and then meets itself.
            if other.token != mine.token:
                return other
        numbers = _numbers(self._place, name)
        if max(numbers) != number + 1:
            # An old listing was read: the lock has gone on.
            self._place.remove(goal)
            return self._read(name, max(numbers)) or Holder()
        self._place.remove(*(_numbered(name, one) for one in numbers if one <= number))
        return Lease(self._place, name, number + 1, mine)

    def _living(self, name: str) -> tuple[int, Holder | None]:
        """The last number of a lock, 0 if it has none yet, and its holder, None if it is free."""
        number = max(_numbers(self._place, name), default=0)
        holder = self._read(name, number) if number else None
        if holder is None or holder.is_gone():
            return number, None
        age = self._place.age_seconds(_numbered(name, number))
        return number, holder if age is not None and age < LEASE_SECONDS else None

    def _read(self, name: str, number: int) -> Holder | None:
        content = self._place.read(_numbered(name, number)) if number else None
        return None if content is None else read_value(Holder, json.loads(content))

    def _names(self) -> list[str]:
        return sorted({found[1] for name in self._place.facts() if (found := _NUMBERED.fullmatch(name))})


def _numbers(place: Bucket, name: str) -> list[int]:
    found = map(_NUMBERED.fullmatch, place.facts())
    return [int(one[2]) for one in found if one and one[1] == name]


def _numbered(name: str, number: int) -> str:
    return f"{name}.{number:08d}"


def _words(holder: Holder) -> str:
    where = "" if holder.machine == _machine() else f" on {holder.machine.partition(' ')[0]}"
    return f"{holder.words or 'unknown'}{where}"


def _machine() -> str:
    """The name of this machine, and what tells its start and its container from others: a process's mark is known there alone."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {secrets.token_hex(8)}"
