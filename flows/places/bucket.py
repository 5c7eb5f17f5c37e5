"""A place that is a prefix of a bucket in S3."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from flows import s3, temporary_folders
from flows.places.place import Fact


@dataclass(frozen=True)
class Bucket:
    """A `flows.places.Place` that is a prefix of a bucket: an object appears whole, and a put that is cut short leaves nothing.

    Raises Unreachable if the server does not answer, or cannot for long, AskedWrongly if it refuses.
    """

    address: str
    look_seconds: ClassVar[float] = 5.0

    def within(self, name: str) -> Bucket:
        return Bucket(f"{self.address}/{name}")

    def read(self, name: str) -> bytes | None:
        with s3.in_our_words(self._where(name)):
            try:
                return bytes(s3.shared().get_object(**self._key(name))["Body"].read())
            except Exception as error:
                if s3.is_missing(error):
                    return None
                raise

    def write(self, name: str, content: str | bytes) -> None:
        with s3.in_our_words(self._where(name), doing="written"):
            s3.shared().put_object(**self._key(name), Body=_bytes(content))

    def create(self, name: str, content: str | bytes) -> bool:
        with s3.in_our_words(self._where(name), doing="written"):
            return s3.put_if_absent(s3.shared(), self._key(name), _bytes(content))

    def exists(self, name: str) -> bool:
        with s3.in_our_words(self._where(name)):
            try:
                s3.shared().head_object(**self._key(name))
            except Exception as error:
                if s3.is_missing(error):
                    return False
                raise
        return True

    def facts(self) -> Mapping[str, Fact]:
        return {name: _fact(item) for name, item in self._list(Delimiter="/")}

    def tree(self) -> Mapping[str, Fact]:
        return {name: _fact(item) for name, item in self._list()}

    def remove(self, *names: str) -> None:
        for name in names:
            with s3.in_our_words(self._where(name), doing="removed"):
                s3.shared().delete_object(**self._key(name))

    def clear(self) -> None:
        with ThreadPoolExecutor(s3.NUM_CONNECTIONS) as pool:
            list(pool.map(self.remove, [name for name, _ in self._list()]))

    def copy(self, name: str, goal: Path) -> bool:
        with s3.in_our_words(self._where(name)):
            try:
                # It writes beside the goal, and renames.
                s3.shared().download_file(**self._key(name), Filename=str(goal))
            except Exception as error:
                if s3.is_missing(error):
                    return False
                raise
        return True

    def fetch(self, name: str) -> Path | None:
        goal = _copies(os.getpid(), tempfile.gettempdir()) / sha256(self.address.encode()).hexdigest()[:16] / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        return goal if self.copy(name, goal) else None

    def age_seconds(self, name: str) -> float | None:
        """How long ago an object was written, by the server's own clock; None if there is none."""
        with s3.in_our_words(self._where(name)):
            try:
                told = s3.shared().head_object(**self._key(name))
            except Exception as error:
                if s3.is_missing(error):
                    return None
                raise
        now = parsedate_to_datetime(told["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - told["LastModified"]).total_seconds())

    @contextmanager
    def filling(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="headstart-filling-") as made:
            folder = Path(made)
            yield folder
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            with ThreadPoolExecutor(s3.NUM_CONNECTIONS) as pool:
                list(pool.map(lambda file: self._store(file.relative_to(folder).as_posix(), file), files))

    def _store(self, name: str, file: Path) -> None:
        with s3.in_our_words(self._where(name), doing="written"):
            s3.shared().upload_file(Filename=str(file), **self._key(name))

    def _list(self, **options: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every object below the prefix (with a Delimiter, right below it), by its name there."""
        bucket, prefix = s3.split(self.address)
        start = f"{prefix}/" if prefix else ""
        with s3.in_our_words(f"storage {self.address!r}"):
            for page in s3.shared().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start, **options):
                for item in page.get("Contents", ()):
                    if name := item["Key"].removeprefix(start):
                        yield name, item

    def _key(self, name: str) -> dict[str, str]:
        bucket, prefix = s3.split(self.address)
        return {"Bucket": bucket, "Key": f"{prefix}/{name}" if prefix else name}

    def _where(self, name: str) -> str:
        return f"{self.address}/{name}"


def _fact(item: Mapping[str, Any]) -> Fact:
    return Fact(item["ETag"], item["LastModified"].timestamp(), item["Size"])


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@lru_cache(maxsize=4)
def _copies(process: int, temporaries: str) -> Path:
    """The folder of a process's copies, where it keeps temporary files now: a job's are removed with its other ones."""
    return temporary_folders.of_this_process("copies")
