"""What is published, read by signed addresses: a consumer needs neither credentials nor a client of S3."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from flows.errors import AskedWrongly, Unreachable
from flows.publishing.pointer import POINTER
from flows.publishing.streams import MAX_SMALL_BYTES, append, small

TIMEOUT_SECONDS = 60
PARTIAL = 206
RENEW = "ask for new ones: headstart models publish NAME s3://BUCKET/PREFIX --expires SECONDS"


@dataclass(frozen=True)
class Signed:
    """The files of one published bundle, by the lines that `headstart models publish --expires` prints, in a file."""

    path: Path

    @cached_property
    def _addresses(self) -> dict[str, str]:
        """By name the address of each file."""
        with self.path.open("rb") as file:
            lines = small(file, str(self.path)).decode(errors="replace").splitlines()
        found = {}
        for number, line in enumerate(lines, 1):
            name, _, address = line.strip().partition(" ")
            if urlsplit(address).scheme not in ("http", "https"):
                raise AskedWrongly(
                    f"line {number} of {self.path} is no file's name and its signed address, as `headstart models publish "
                    f"--expires` prints them: {line[:80]!r}"
                )
            found[name] = address
        if POINTER not in found:
            raise AskedWrongly(f"{self.path} holds no signed addresses of a published model, {POINTER} among them; {RENEW}")
        return found

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is no address of it."""
        address = self._find(name)
        if address is None:
            return None
        with self._open(address) as body:
            return small(body, _shown(address))

    def fetch(self, name: str, file: Path, size: int) -> None:
        """Add to `file` what it lacks of the stored file of `size` bytes, and never more than that."""
        address = self._find(name)
        if address is None:
            raise AskedWrongly(f"another version is published by now than the one of the addresses in {self.path}; {RENEW}")
        with file.open("ab") as copy:
            if (start := copy.tell()) < size:
                with self._open(address, f"bytes={start}-{size - 1}") as body:
                    if body.status != PARTIAL:
                        copy.truncate(0)
                        copy.seek(0)
                    append(body, copy, size)
                if copy.tell() < size:
                    raise Unreachable(f"the server of {_shown(address)} broke off; what came is kept, pull again")

    def write(self, name: str, content: bytes) -> None:
        """Refused."""
        self._refuse()

    def put(self, name: str, file: Path) -> None:
        """Refused."""
        self._refuse()

    def sign(self, name: str, seconds: int) -> str:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AskedWrongly(f"{self.path} is a file, and nothing can be published there; name s3://bucket/prefix or a folder")

    def _find(self, name: str) -> str | None:
        """The address of a file of the bundle, named `<digest>/<file>`, if it is that bundle's; or of the pointer."""
        address = self._addresses.get(name.rpartition("/")[2])
        return address if address and unquote(urlsplit(address).path).endswith(f"/{name}") else None

    @contextmanager
    def _open(self, address: str, part: str = "") -> Any:
        request = urllib.request.Request(address, headers={"Range": part} if part else {})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as body:
                yield body
        except urllib.error.HTTPError as error:
            raise self._refused(address, error) from None
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unreachable(f"the server of {_shown(address)} does not answer, or broke off: {reason}") from error

    def _refused(self, address: str, error: urllib.error.HTTPError) -> AskedWrongly:
        said = error.read(MAX_SMALL_BYTES).decode(errors="replace")
        ended = _expiry(address)
        if error.code >= http.client.INTERNAL_SERVER_ERROR:
            return Unreachable(f"the server of {_shown(address)} answers {error.code} {error.reason}")
        if "expired" in said.lower() or (ended and ended < datetime.now(UTC)):
            when = f" at {ended:%Y-%m-%d %H:%M} UTC" if ended else ""
            return AskedWrongly(f"the signed addresses in {self.path} expired{when}; {RENEW}")
        return AskedWrongly(f"{_shown(address)} is refused by its server ({error.code} {error.reason}); {RENEW}")


def _expiry(address: str) -> datetime | None:
    """When a signed address ends, by its own words; None if it does not say."""
    asked = parse_qs(urlsplit(address).query)
    try:
        begun = datetime.strptime(asked["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return begun + timedelta(seconds=int(asked["X-Amz-Expires"][0]))
    except (KeyError, ValueError, OverflowError):
        return None


def _shown(address: str) -> str:
    """An address without its signature, which is a secret."""
    return urlsplit(address)._replace(query="").geturl()
