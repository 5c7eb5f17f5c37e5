"""Samples and masks on a node that has no workspace: fetched from the DVC remote by digest, ahead of their readers."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from threading import Lock, Semaphore, Thread

from flows.errors import HeadstartError
from flows.objects import fetched
from flows.objects.node_cache import NodeCache
from flows.objects.packing import read_packs
from flows.objects.packs import FOLDER, PACK, Packs
from flows.objects.reading import NUM_THREADS, Reader, object_key
from flows.objects.requests import PackPart, Request, plan_requests
from flows.records import Remote

LOG = logging.getLogger(__name__)
# Objects that are fetched ahead and wait in memory, where the node has no room to keep them.
NUM_WAITING = 128
TRIES = 3


class Damaged(HeadstartError):
    """An object of the remote whose bytes are not those of its name."""


class NodeObjects:
    """The objects of a remote as the processes of this node read them: from its copies, else fetched and kept.

    If there is no room to keep them, or the disk refuses, they are read without, which is said once.
    """

    def __init__(self, remote: Remote, cache: NodeCache, reader: Reader | None = None, num_threads: int = NUM_THREADS) -> None:
        self.remote, self.cache, self._given, self._num_threads = remote, cache, reader, num_threads
        self._lock, self._told = Lock(), False
        self._passes: dict[Hashable, _Pass] = {}
        self._running: dict[str, Future[None]] = {}
        self._wanted, self._pinned = set[str](), set[Hashable]()

    @cached_property
    def reader(self) -> Reader:
        """The reader of the remote."""
        return self._given or Reader(self.remote, self._num_threads)

    def pin(self, name: Hashable, list_digests: Callable[[], Sequence[str]]) -> None:
        """Say once, by a name, which objects this process may read: they stay while it lives, and parts bring all of them."""
        if name not in self._pinned:
            self._pinned.add(name)
            digests = list_digests()
            self._wanted |= set(digests)
            with suppress(OSError):
                self.cache.pin(digests)

    def take(self, digest: str) -> Path | bytes:
        """An object, as the file of its copy, or its bytes if it could not be kept.

        Raises Missing if the remote lacks it, Damaged if its bytes are others, and as `Reader` does.
        """
        while True:
            if (content := self._at_hand(digest)) is not None:
                return content
            with self._fetching([digest]) as mine:
                if mine:
                    # What another thread fetched until now is at hand.
                    content = self._at_hand(digest)
                    return self._fetch(digest) if content is None else content
                fetching = self._running.get(digest)
            if fetching:
                fetching.exception()

    def _at_hand(self, digest: str) -> Path | bytes | None:
        for one in tuple(self._passes.values()):
            if (content := one.take(digest)) is not None:
                return content
        return self.cache.find(digest)

    def prefetch(self, reader: Hashable, digests: Sequence[str]) -> None:
        """Fetch these objects ahead, in the order in which this reader will ask; ends what was fetched for it before."""
        begun = _Pass(digests)
        with self._lock:
            if before := self._passes.get(reader):
                before.end()
            self._passes[reader] = begun
        Thread(target=self._prefetch, args=(begun,), daemon=True, name="ahead").start()

    def _prefetch(self, begun: _Pass) -> None:
        lacking = [digest for digest in begun.digests if self.cache.find(digest) is None]
        if not lacking:
            return
        try:
            packs = read_packs(self.reader, self.cache.folder / "packs") if len(lacking) > 1 else Packs([], [])
        except HeadstartError as error:
            LOG.info("nothing is fetched ahead: %s", error)
            return
        requests, lock = begun.requests(plan_requests(lacking, packs)), Lock()

        def work() -> None:
            while not begun.ended:
                with lock:
                    request = next(requests, None)
                if request is None:
                    return
                try:
                    self._serve(request, begun)
                except HeadstartError as error:
                    # Raised again where the object is read.
                    LOG.info("fetching ahead: %s", error)

        for _ in range(self._num_threads):
            Thread(target=work, daemon=True, name="ahead").start()

    def _serve(self, request: Request, begun: _Pass) -> None:
        if isinstance(request, PackPart):
            with self._alone(request) if request.shared else nullcontext():
                self._serve_part(request, begun)
            return
        with self._fetching([request]) as mine:
            content: Path | bytes | None = None
            try:
                content = self._fetch(request) if mine and self.cache.find(request) is None else None
            finally:
                begun.settle(request, content)

    def _serve_part(self, part: PackPart, begun: _Pass) -> None:
        wanted = [row for row in part.objects if row[0] in self._wanted or row[0] in begun.wanted]
        with self._fetching([digest for digest, _, _ in wanted]) as mine:
            rows = [row for row in wanted if row[0] in mine and self.cache.find(row[0]) is None]
            if not rows:
                return
            start, end = rows[0][1], rows[-1][2]
            content = memoryview(self.reader.read(f"{FOLDER}{part.pack}{PACK}", start, end))
            fetched.count(len(rows))
            for digest, first, last in rows:
                piece = bytes(content[first - start : last - start])
                if _is(piece, digest) and isinstance(self._keep(digest, piece), bytes):
                    # Parts come in the packs' order: from here on objects come alone, in the readers'.
                    begun.has_room = False
                    return

    def _fetch(self, digest: str) -> Path | bytes:
        for _ in range(TRIES):
            content = self.reader.read(object_key(digest))
            if _is(content, digest):
                fetched.count(1)
                return self._keep(digest, content)
        raise Damaged(f"{self.remote.address}/{object_key(digest)} does not have the md5 of its name")

    def _keep(self, digest: str, content: bytes) -> Path | bytes:
        try:
            kept, why = self.cache.keep(digest, content), "all of its room is taken by what running jobs need"
        except OSError as error:
            kept, why = None, error.strerror or str(error)
        if kept is None and not self._told:
            self._told = True
            LOG.warning("samples are read without being kept on this node: %s: %s", self.cache.folder, why)
        return content if kept is None else kept

    @contextmanager
    def _fetching(self, digests: Sequence[str]) -> Iterator[set[str]]:
        """Those of the digests that no other thread fetches; readers wait for them until the block ends."""
        done: Future[None] = Future()
        mine = {digest for digest in digests if self._running.setdefault(digest, done) is done}
        try:
            yield mine
        finally:
            for digest in mine:
                del self._running[digest]
            done.set_result(None)

    @contextmanager
    def _alone(self, part: PackPart) -> Iterator[None]:
        """Hold a part's lock, so that of a node's processes one reads it; without a lock if the disk refuses one."""
        path = self.cache.folder / "locks" / f"{part.pack}-{part.start}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("ab")
        except OSError:
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Pass:
    """One pass over objects in a known order: what is fetched ahead of it, and what waits for it in memory."""

    def __init__(self, digests: Sequence[str]) -> None:
        self.digests = list(dict.fromkeys(digests))
        self.wanted = set(self.digests)
        self.ended, self.has_room = False, True
        self._positions = {digest: number for number, digest in enumerate(self.digests)}
        self._at, self._held, self._room = -1, dict[str, bytes](), Semaphore(NUM_WAITING)
        self._slots = set[str]()

    def requests(self, planned: Sequence[Request]) -> Iterator[Request]:
        """The planned requests; if there is no room to keep what they bring, the objects alone, from the reader's place on."""
        for request in planned:
            if not self.has_room:
                break
            yield request
        if self.has_room:
            return
        for digest in self.digests[self._at + 1 :]:
            while not self._room.acquire(timeout=1.0):
                if self.ended:
                    return
            if self._positions[digest] <= self._at:
                self._room.release()
            else:
                self._slots.add(digest)
                yield digest

    def settle(self, digest: str, content: Path | bytes | None) -> None:
        """Note what the request for an object brought: bytes wait for their reader, as many as there are slots for."""
        holds = digest in self._slots
        if isinstance(content, bytes):
            self.has_room = False
            if holds and not self.ended:
                self._held[digest] = content
                return
        if holds:
            self._slots.discard(digest)
            self._room.release()

    def take(self, digest: str) -> bytes | None:
        """The bytes that wait for this reader, if there are any."""
        self._at = max(self._at, self._positions.get(digest, -1))
        content = self._held.pop(digest, None)
        if content is not None:
            self._slots.discard(digest)
            self._room.release()
        return content

    def end(self) -> None:
        """Give the pass up."""
        self.ended = True
        self._held.clear()


def _is(content: bytes, digest: str) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == digest
