"""A way to a server that can be disturbed: for a while it answers 503 to every request, or nothing at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# What a client still sends is read for so long: at a connection closed over it, it would see a reset and not the answer.
DRAIN_SECONDS = 2.0


class Way:
    """Forwards connections to a port on 127.0.0.1; `hits` counts the requests that met a disturbance."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._disturb: str | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self.hits = 0

    @contextmanager
    def open(self, address: str) -> Iterator[str]:
        """The endpoint of the way for the block, on a free port of this address."""
        thread = threading.Thread(target=self._loop.run_forever, name="way", daemon=True)
        thread.start()
        try:
            server = self._run(asyncio.start_server(self._accept, address, 0))
            try:
                yield f"http://{address}:{server.sockets[0].getsockname()[1]}"
            finally:
                self._run(self._close(server))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """In the block every request is answered by 503 SlowDown; what was under way is cut."""
        with self._disturbed("busy"):
            yield

    @contextmanager
    def silent(self) -> Iterator[None]:
        """In the block no request is answered; what was under way is cut, and at the end all that waits is cut too."""
        with self._disturbed("silent"):
            yield

    @contextmanager
    def _disturbed(self, how: str) -> Iterator[None]:
        self._disturb = how
        self._run(self._cut())
        try:
            yield
        finally:
            self._disturb = None
            self._run(self._cut())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        await self._cut()
        # Let the transports that were closed just now go.
        await asyncio.sleep(0.1)

    async def _cut(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if self._disturb is None:
                await self._forward(reader, writer)
            else:
                await self._refuse(reader, writer)
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, to_writer))
                group.create_task(_copy(to_reader, writer))
        except* OSError:
            pass
        finally:
            to_writer.close()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.hits += 1
        if self._disturb == "silent":
            await asyncio.Event().wait()
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.readexactly(int(lengths[0]) if lengths else 0), DRAIN_SECONDS)
        body = b"" if head.startswith(b"HEAD") else SLOW_DOWN
        answer = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(SLOW_DOWN)}\r\n"
        writer.write(answer.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**18):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
