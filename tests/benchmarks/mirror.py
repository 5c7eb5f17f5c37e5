"""A storage in a bucket as a folder of this machine that follows it, so that what watches a folder watches a bucket."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import s3

PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Server:
    """An S3 server: the address of a bucket of it, the variables by which programs find it, and a client."""

    address: str
    environment: Mapping[str, str]
    client: Any


class Mirror:
    """A folder with the objects below an address, each as it was at the last look, with the time at which it was written."""

    def __init__(self, address: str, folder: Path, client: Any) -> None:
        self.address, self.folder, self._client = address, folder, client
        self._bucket, self._prefix = s3.split(address)
        self._known: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def look(self) -> None:
        """Bring what is new, and remove what is gone."""
        with self._lock:
            found = {}
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
            for page in pages:
                for item in page.get("Contents", ()):
                    found[item["Key"].removeprefix(f"{self._prefix}/")] = item["ETag"], item["LastModified"].timestamp()
            for name in found.keys() - {name for name, fact in self._known.items() if fact == found.get(name)}:
                self._bring(name, found[name][1])
            for name in self._known.keys() - found.keys():
                (self.folder / name).unlink(missing_ok=True)
            self._known = found

    def _bring(self, name: str, written_at: float) -> None:
        goal = self.folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        partial = goal.with_name(f".{goal.name}.new")
        try:
            partial.write_bytes(self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")["Body"].read())
        except self._client.exceptions.NoSuchKey:  # removed meanwhile
            return
        os.utime(partial, (written_at, written_at))
        partial.replace(goal)


@contextmanager
def following(mirror: Mirror) -> Iterator[None]:
    """Let the folder follow the bucket for the block."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(PAUSE_SECONDS):
            mirror.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
