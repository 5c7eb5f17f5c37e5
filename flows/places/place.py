"""What a place of files can do, and one of its files as a value."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Fact:
    """What a listing says of a file: a stamp that differs whenever its content does, and its time in seconds since 1970."""

    stamp: str
    written_at: float
    num_bytes: int


class Place(Protocol):
    """Files by name. Each appears whole, and any number of processes, on any machine that reaches the place, read and write.

    Places are equal if they are the same place. What a name holds after two writers at once is what one of them wrote.
    """

    @property
    def address(self) -> str:
        """The absolute path of a folder, or an address such as `s3://bucket/prefix`; `open_place` opens it."""

    @property
    def look_seconds(self) -> float:
        """How often to look for news here, when waiting for any: a look into a bucket is a request that somebody pays."""

    def within(self, name: str) -> Place:
        """The place of that name in this one, there or not; `name` may be a path, such as `work/3f2a`."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, or replace it, whole or not at all."""

    def create(self, name: str, content: str | bytes) -> bool:
        """Write a file only if there is none of that name, and say whether it was written: of many writers one succeeds."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def facts(self) -> Mapping[str, Fact]:
        """The files that lie right here, by name, in one listing; those of places within are left out."""

    def tree(self) -> Mapping[str, Fact]:
        """All files here and below, by their names from here, such as `w1/result.json`."""

    def remove(self, *names: str) -> None:
        """Remove files, those that are there."""

    def clear(self) -> None:
        """Remove everything here and below."""

    def copy(self, name: str, goal: Path) -> bool:
        """Copy a file to a path of this machine, and say whether it is there; a copy that is cut short may be left."""

    def fetch(self, name: str) -> Path | None:
        """A file of this machine with the content of that name, for reading; None if there is none.

        It is the file itself, or a copy in a temporary folder of this process.
        """

    def filling(self) -> AbstractContextManager[Path]:
        """A folder of this machine for the block; what is written into it is in the place, below its names, after the block.

        It is the folder itself, or an empty one whose files are stored at the block's end; of a block that fails, none.
        """


@dataclass(frozen=True)
class StoredFile:
    """A file of a place."""

    place: Place
    name: str

    @property
    def address(self) -> str:
        """Its path, or its address."""
        return f"{self.place.address}/{self.name}"

    def exists(self) -> bool:
        """Whether it is there."""
        return self.place.exists(self.name)

    def read(self) -> bytes | None:
        """Its content, None if it is not there."""
        return self.place.read(self.name)

    def write(self, content: str | bytes) -> None:
        """Write it, whole or not at all."""
        self.place.write(self.name, content)

    def read_json(self, missing: Any = None) -> Any:
        """Its content as JSON, or `missing` if it is not there."""
        content = self.read()
        return missing if content is None else json.loads(content)

    def write_json(self, content: Any) -> None:
        """Write a value as JSON, whole or not at all."""
        self.write(json.dumps(content))


class Held(Exception):
    """A lock that somebody else holds; `holder` says who, in words."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class Lock(Protocol):
    """A lock that this process holds."""

    def check(self) -> None:
        """Raises HeadstartError if the lock was lost: another process may hold it by now."""


def acquire(
    attempt: Callable[[], Taken | str], wait_seconds: float, pauses: Iterable[float], on_wait: Callable[[str], None] | None
) -> Taken:
    """What an attempt takes; one that gives words, of who holds it, is made again after the next of endless pauses (seconds).

    `on_wait` gets the first such words. Raises Held, of the last ones, after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    for number, pause in enumerate(pauses):
        if not isinstance(taken := attempt(), str):
            return taken
        if time.monotonic() >= deadline:
            raise Held(taken)
        if number == 0 and on_wait:
            on_wait(taken)
        time.sleep(pause)
    raise AssertionError("the pauses ended")
