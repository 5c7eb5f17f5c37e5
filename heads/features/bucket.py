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
from heads.features.folder import SHARD, TOUCH_SECONDS, USED, Opened, ShardFile
from heads.features.local_cache import LocalCache, cache_folder
from heads.features.refusals import explain

# A header has 27 bytes a sample: most come with the first request.
PEEK_BYTES = 1 << 16


class Peeked:
    """The first bytes of a shard of `num_bytes`."""

    def __init__(self, content: bytes, num_bytes: int) -> None:
        self._content, self.num_bytes = content, num_bytes

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` with the bytes from `offset` on; False if what was fetched ends before."""
        part = self._content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part) == len(buffer)

    def close(self) -> None:
        """Ends the reading."""


class ShardBucket:
    """A `heads.features.place.ShardPlace` that is a prefix of an object store.

    Credentials and endpoints come from the usual places of the store's tools (AWS_PROFILE, AWS_ENDPOINT_URL_S3, ...), and so
    do retries. Raises HeadsError if the store refuses or does not answer.
    """

    # Readers mostly wait for the network.
    num_readers = 8

    def __init__(self, address: str, files: Any, cache: LocalCache) -> None:
        self.address, self._files, self._cache = address, files, cache
        self._sizes: dict[str, int] = {}
        self._touched_at = -TOUCH_SECONDS

    @classmethod
    def at(cls, address: str) -> ShardBucket:
        """The prefix that an address such as `s3://bucket/prefix` names."""
        address = address.rstrip("/")
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        return cls(address, _connect(address), LocalCache(cache_folder() / digest))

    def __str__(self) -> str:
        return self.address

    def within(self, name: str) -> ShardBucket:
        """The prefix of that name below this one."""
        return ShardBucket(f"{self.address}/{name}", self._files, self._cache.within(name))

    def places(self) -> list[str]:
        """The names of the prefixes right below this one, sorted."""
        return sorted(name for name, facts in self._list().items() if facts["type"] == "directory")

    def put(self, name: str, content: bytes) -> None:
        """Writes an object, whole or not at all; a copy of a shard is kept on this machine, which reads it next."""
        with self._in_our_words():
            self._files.pipe_file(self._at(name), content)
        if SHARD.fullmatch(name):
            self._sizes[name] = len(content)
            self._cache.keep(name, content)

    def entries(self) -> list[ShardFile]:
        """The shards that lie here now, by name, in one listing."""
        objects = self._list()
        return [
            ShardFile(name, objects[name]["size"], _written_at(objects[name]))
            for name in sorted(objects)
            if SHARD.fullmatch(name)
        ]

    def names(self, form: re.Pattern[str] = SHARD) -> list[str]:
        """The names of this form that lie here now, sorted, in one listing."""
        return sorted(filter(form.fullmatch, self._list()))

    def read(self, name: str) -> bytes:
        """A small object. Raises FileNotFoundError if it is gone."""
        return self._fetch_range(name, None, None)

    def peek(self, name: str) -> Opened | Peeked:
        """A shard's header: from a copy, else fetched alone and kept. Raises FileNotFoundError if the shard is gone."""
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
        """A shard's copy, fetched whole if there is none. Raises FileNotFoundError if the shard is gone then."""
        return self._cache.open(name) or self._cache.fetch(name, self._size(name), partial(self._fetch, name))

    def open_here(self, name: str) -> Opened:
        """A shard fetched anew, past any copy, for this reader alone. Raises FileNotFoundError if it is gone."""
        return self._cache.borrow(self._size(name), partial(self._fetch, name))

    def forget(self, name: str) -> bool:
        """Drops the copies of a shard and of its header. True even if there were none: another process may have mended them."""
        self._cache.forget(name)
        self._cache.forget(_header(name))
        return True

    def remove(self, name: str) -> None:
        """Removes an object, if it is there; open readers go on reading it."""
        with suppress(FileNotFoundError), self._in_our_words():
            self._files.rm_file(self._at(name))
        self.forget(name)

    def touch(self) -> None:
        """Notes that the prefix is used now, once a minute at most; a store that refuses this is left as it is."""
        if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with suppress(HeadsError):
                self.put(USED, b"")

    def used_at(self) -> float:
        """When the prefix was last used, by the store's clock, in seconds since the epoch; 0 if that was never noted."""
        try:
            with self._in_our_words():
                return _written_at(self._files.info(self._at(USED)))
        except FileNotFoundError:
            return 0.0

    def sweep(self) -> None:
        """Removes the note of use if nothing else is there; a put that was cut off leaves nothing to remove."""
        if self._list().keys() == {USED}:
            self.remove(USED)

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _list(self) -> dict[str, dict[str, Any]]:
        """The store's facts about what lies right below the prefix, by name."""
        try:
            with self._in_our_words():
                listing = self._files.ls(self.address, detail=True)
        except FileNotFoundError:
            return {}
        named = {facts["name"].rstrip("/").rpartition("/")[2]: facts for facts in listing}
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
        """Turns errors of a store's library into HeadsErrors, but lets FileNotFoundError pass if an object is not there."""
        try:
            yield
        except Exception as error:
            explained = explain(self.address, error)
            if explained is None:
                raise
            raise explained from error


def _connect(address: str) -> Any:
    import fsspec

    protocol = address.partition("://")[0]
    # Several shards are fetched at once, so each comes in one piece, with one request.
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
    written = facts.get("LastModified") or facts.get("created") or 0.0
    return written.timestamp() if isinstance(written, datetime) else float(written)
