"""Shards in an object store: put and listed there, and read from copies on this machine, since rows are a few kB each."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from heads.errors import HeadsError
from heads.features.folder import SHARD, TOUCH_SECONDS, USED, Entry, Opened
from heads.features.local_cache import LocalCache, cache_folder
from heads.features.refusals import explain

# A header has 27 bytes a sample: most come with the first request.
PEEK_BYTES = 1 << 16


class Peeked:
    """The first bytes of a shard of `num_bytes`."""

    def __init__(self, content: bytes, num_bytes: int) -> None:
        self._content, self.num_bytes = content, num_bytes

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` with the bytes from `offset` on; False where what was fetched ends before."""
        found = self._content[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found) == len(buffer)

    def close(self) -> None:
        """Ends the reading."""


class Bucket:
    """A prefix of an object store, in the words of `heads.features.place.Place`.

    Credentials and endpoints come from the usual places of the store's tools (AWS_PROFILE, AWS_ENDPOINT_URL_S3, ...), and so
    do retries. Raises HeadsError where the store refuses or does not answer.
    """

    # They mostly wait.
    num_readers = 8

    def __init__(self, address: str, files: Any, cache: LocalCache) -> None:
        self.address, self._files, self._cache = address, files, cache
        self._sizes: dict[str, int] = {}
        self._touched_at = -TOUCH_SECONDS

    @classmethod
    def at(cls, address: str) -> Bucket:
        """The prefix that an address such as `s3://bucket/prefix` names."""
        address = address.rstrip("/")
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        return cls(address, _connect(address), LocalCache(cache_folder() / digest))

    def __str__(self) -> str:
        return self.address

    def within(self, name: str) -> Bucket:
        """The prefix of that name below this one."""
        return Bucket(f"{self.address}/{name}", self._files, self._cache.within(name))

    def places(self) -> list[str]:
        """The names of the prefixes right below this one, sorted."""
        return sorted(name for name, facts in self._list().items() if facts["type"] == "directory")

    def put(self, name: str, content: bytes) -> None:
        """Writes an object, which stores do whole or not at all; this machine keeps a copy of a shard, since it reads it next."""
        with self._in_our_words():
            self._files.pipe_file(self._at(name), content)
        if SHARD.fullmatch(name):
            self._sizes[name] = len(content)
            self._cache.keep(name, content)

    def entries(self) -> list[Entry]:
        """The shards that lie here now, by name, in one listing."""
        found = self._list()
        return [Entry(name, found[name]["size"], _written_at(found[name])) for name in sorted(found) if SHARD.fullmatch(name)]

    def names(self, form: re.Pattern[str] = SHARD) -> list[str]:
        """The names of this form that lie here now, sorted, in one listing."""
        return sorted(filter(form.fullmatch, self._list()))

    def read(self, name: str) -> bytes:
        """A small object. Raises FileNotFoundError where it is gone."""
        return self._fetch_range(name, None, None)

    def peek(self, name: str) -> Opened | Peeked:
        """A shard's header: from a copy, else fetched alone and kept. Raises FileNotFoundError where it is gone."""
        size = self._size(name)
        if copy := self._cache.open(name):
            return copy
        if (kept := self._cache.read(_header(name))) is not None:
            return Peeked(kept, size)
        content = self._fetch_range(name, 0, min(PEEK_BYTES, size)) if size else b""
        end = min(8 + int.from_bytes(content[:8], "little"), size)
        if end > len(content):
            content += self._fetch_range(name, len(content), end)
        self._cache.keep(_header(name), content[:end])
        return Peeked(content[:end], size)

    def open(self, name: str) -> Opened:
        """A shard's copy, fetched whole where there is none. Raises FileNotFoundError where that finds it gone."""
        return self._cache.open(name) or self._cache.fetch(name, self._size(name), partial(self._fetch, name))

    def open_here(self, name: str) -> Opened:
        """A shard fetched anew, and kept for the reader alone. Raises FileNotFoundError where it is gone."""
        return self._cache.borrow(self._size(name), partial(self._fetch, name))

    def forget(self, name: str) -> bool:
        """Drops the copies of a shard and of its header. True: another thread or process may have dropped or mended them."""
        self._cache.forget(name)
        self._cache.forget(_header(name))
        return True

    def remove(self, name: str) -> None:
        """Removes an object, if it is there; who has it open goes on reading."""
        with suppress(FileNotFoundError), self._in_our_words():
            self._files.rm_file(self._at(name))
        self.forget(name)

    def touch(self) -> None:
        """Notes that the prefix is used now, once a minute at most; where that is refused, it is left as it is."""
        if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with suppress(HeadsError):
                self.put(USED, b"")

    def used_at(self) -> float:
        """When it was last used by the store's clock, in seconds since the epoch; 0 where that was never noted."""
        try:
            with self._in_our_words():
                return _written_at(self._files.info(self._at(USED)))
        except FileNotFoundError:
            return 0.0

    def sweep(self) -> None:
        """Removes the note of use where nothing else is there: a put that was cut off leaves nothing."""
        if self._list().keys() == {USED}:
            self.remove(USED)

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _list(self) -> dict[str, dict[str, Any]]:
        """What lies right below the prefix, by name."""
        try:
            with self._in_our_words():
                found = self._files.ls(self.address, detail=True)
        except FileNotFoundError:
            return {}
        named = {facts["name"].rstrip("/").rpartition("/")[2]: facts for facts in found}
        self._sizes = {name: int(facts["size"]) for name, facts in named.items()}
        return named

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            with self._in_our_words():
                self._sizes[name] = int(self._files.info(self._at(name))["size"])
        return self._sizes[name]

    def _fetch(self, name: str, goal: Path) -> None:
        with self._in_our_words():
            self._files.get_file(self._at(name), str(goal))

    def _fetch_range(self, name: str, start: int | None, end: int | None) -> bytes:
        with self._in_our_words():
            return bytes(self._files.cat_file(self._at(name), start=start, end=end))

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Lets pass that an object is not there; all else that a store's library raises is told for people."""
        try:
            yield
        except Exception as error:
            told = explain(self.address, error)
            if told is None:
                raise
            raise told from error


def _connect(address: str) -> Any:
    import fsspec

    protocol = address.partition("://")[0]
    # Shards are fetched beside each other, so each comes in one piece and with one request.
    options = {"max_concurrency": 1} if protocol == "s3" else {}
    try:
        # One instance serves the process to its end: it is never collected in a forked child, where closing it would hang.
        return fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        raise HeadsError(f"{address} cannot be read: {error}; install 'headstart[flows]'") from error
    except ValueError as error:
        raise HeadsError(f"{address} is no address of an object store: {error}; write s3://bucket/prefix") from error


def _header(name: str) -> str:
    return f"{name}.header"


def _written_at(facts: dict[str, Any]) -> float:
    found = facts.get("LastModified") or facts.get("created") or 0.0
    return found.timestamp() if isinstance(found, datetime) else float(found)
