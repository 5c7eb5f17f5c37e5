"""Where bundles are published: a prefix of a bucket in S3, or a folder; signed addresses of a bucket's are read, too."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from flows import s3
from flows.errors import AskedWrongly
from flows.files import write_whole
from flows.publishing.signed import Signed
from flows.publishing.streams import append, small

MAX_SIGNED_SECONDS = 7 * 86400


class BundlePlace(Protocol):
    """A place of files by name, such as `<digest>/card.md`."""

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there. Raises AskedWrongly if it is longer than 64 kB."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it, whole or not at all."""
        ...

    def put(self, name: str, file: Path) -> None:
        """Store a copy of a file, whole or not at all."""
        ...

    def fetch(self, name: str, file: Path, size: int) -> None:
        """Add to `file` what it lacks of the stored file of `size` bytes, and never more than that."""
        ...

    def sign(self, name: str, seconds: int) -> str:
        """An address by which anyone may read a file for so many seconds."""
        ...


def open_place(address: str) -> BundlePlace:
    """The place of an address: `s3://bucket/prefix`, a folder's path, or that of a file of signed addresses."""
    if "://" not in address:
        return Signed(Path(address)) if Path(address).is_file() else _Folder(Path(address))
    return _Prefix(address.rstrip("/"), *s3.split(address))


@dataclass(frozen=True)
class _Folder:
    path: Path

    def read(self, name: str) -> bytes | None:
        try:
            with (self.path / name).open("rb") as file:
                return small(file, f"{self.path / name}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)

    def put(self, name: str, file: Path) -> None:
        goal = self.path / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        partial = goal.with_name(f".{goal.name}.{os.getpid()}.new")
        try:
            shutil.copyfile(file, partial)
            partial.replace(goal)
        finally:
            partial.unlink(missing_ok=True)

    def fetch(self, name: str, file: Path, size: int) -> None:
        try:
            with (self.path / name).open("rb") as source, file.open("ab") as copy:
                source.seek(copy.tell())
                append(source, copy, size)
        except FileNotFoundError:
            raise AskedWrongly(f"{self.path / name} is not there, though {self.path} points at it; publish again") from None

    def sign(self, name: str, seconds: int) -> str:
        raise AskedWrongly(f"{self.path} is a folder, and only addresses in a bucket can be signed; leave --expires out")


@dataclass(frozen=True)
class _Prefix:
    address: str
    bucket: str
    prefix: str

    @cached_property
    def _client(self) -> Any:
        return s3.connect()

    def read(self, name: str) -> bytes | None:
        with s3.in_our_words(f"{self.address}/{name}"):
            try:
                body = self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"]
            except Exception as error:
                if s3.is_missing(error):
                    return None
                raise
            return small(body, f"{self.address}/{name}")

    def write(self, name: str, content: bytes) -> None:
        with s3.in_our_words(f"{self.address}/{name}", doing="written"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def put(self, name: str, file: Path) -> None:
        with s3.in_our_words(f"{self.address}/{name}", doing="written"):
            self._client.upload_file(str(file), self.bucket, self._key(name))

    def fetch(self, name: str, file: Path, size: int) -> None:
        with s3.in_our_words(f"{self.address}/{name}"), file.open("ab") as copy:
            if (start := copy.tell()) < size:
                part = f"bytes={start}-{size - 1}"
                body = self._client.get_object(Bucket=self.bucket, Key=self._key(name), Range=part)["Body"]
                append(body, copy, size)

    def sign(self, name: str, seconds: int) -> str:
        if not 1 <= seconds <= MAX_SIGNED_SECONDS:
            raise AskedWrongly(f"--expires {seconds}: S3 signs addresses for 1 to {MAX_SIGNED_SECONDS} seconds (seven days)")
        asked = {"Bucket": self.bucket, "Key": self._key(name)}
        with s3.in_our_words(f"{self.address}/{name}", doing="signed"):
            return str(s3.connect("s3v4").generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name
