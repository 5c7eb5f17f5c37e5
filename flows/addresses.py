"""Addresses in settings: checks of folders, buckets, servers and databases; paths as addresses; a probe of a server."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from flows import environment
from flows.errors import AskedWrongly, Unreachable

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PROBE_SECONDS = 5.0
# 401: the server asks for credentials; 403: it refuses those that it got.
REFUSALS = (401, 403)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def folder(named: str | Path) -> Path:
    """The folder of this machine that is named, with `~` expanded. Raises ValueError if an address or a file is named."""
    text = os.fspath(named)
    if _ADDRESS.match(text):
        raise ValueError("an address, where a folder of this machine is asked for")
    if "\0" in text:
        raise ValueError("no path")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}") from None
    if path.exists() and not path.is_dir():
        raise ValueError("a file, where a folder is asked for")
    return path


def folder_or_bucket(named: str) -> str:
    """The folder or `s3://bucket/prefix` that is named. Raises ValueError if it is neither."""
    if re.fullmatch(r"s3://[^/\s]+(/.*)?", named):
        return named
    if named.startswith("s3:"):
        raise ValueError("an address without a bucket")
    return str(folder(named))


def server(named: str) -> str:
    """The `http(s)://host` that is named, without a closing slash. Raises ValueError if it is none or holds credentials."""
    address = named.strip()
    parts = _split(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of the form http://host:port")
    if parts.username is not None:
        raise ValueError("an address with credentials, which would enter logs")
    return address.rstrip("/")


def server_or_database(named: str) -> str:
    """The address that is named, of an MLflow server or of its database. Raises ValueError if it is neither."""
    address = named.strip()
    parts = _split(address)
    kind = parts.scheme.partition("+")[0]
    if "://" not in address or kind not in ("http", "https", *DATABASES):
        raise ValueError("not understood: neither a server nor a database")
    if kind in ("http", "https") and not parts.hostname:
        raise ValueError("an address without a host")
    return address


def without_password(text: str) -> str:
    """The text, with the password of any address in it replaced by an ellipsis."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:…@", text)


def check_path(folder: Path) -> None:
    """Raise AskedWrongly if the path of a workspace or a storage has a letter that one of our tools takes for something else.

    `?` ends the path in a database's address, DVC fills braces in and turns backslashes, MLflow puts quotes and
    `:names` into SQL as they are.
    """
    letters = sorted(set(re.findall(r"""[?'{}\\\x00-\x1f\x7f]|(?<![:\w]):(?=\w)""", str(folder))))
    if letters:
        raise AskedWrongly(
            f"the path {str(folder)!r} has {' '.join(map(repr, letters))} in it, which DVC or a database's address does not take "
            "literally: give the workspace, or HEADSTART_STORAGE_ROOT, a name without"
        )


def sqlite(file: Path, driver: str = "sqlite") -> str:
    """The address of a SQLite file whose path passes `check_path`."""
    if "%" not in str(file):
        return f"{driver}:///{file}"
    from sqlalchemy.engine import URL

    return URL.create(driver, database=str(file)).render_as_string(hide_password=False)


def local(path: Path) -> str:
    """A folder as MLflow understands it: the path itself, or its file:// address if it has a `%`, which MLflow would decode."""
    return path.as_uri() if "%" in str(path) else str(path)


def probe(server: str, address: str, path: str, headers: Mapping[str, str], advice: str) -> tuple[int, bytes]:
    """The HTTP status and the first 16 bytes of the answer to a GET of `path` at a server's address.

    Raises Unreachable if nothing answers within PROBE_SECONDS; its message names the server and ends with `advice`.
    """
    try:
        request = urllib.request.Request(address.rstrip("/") + path, headers=dict(headers))
        with environment.opener(address).open(request, timeout=PROBE_SECONDS) as answer:
            return int(answer.status), answer.read(16)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""
    except (OSError, ValueError) as error:
        raise Unreachable(f"{server} does not answer at {address} ({getattr(error, 'reason', error)}). {advice}") from None


def _split(address: str) -> SplitResult:
    parts = urlsplit(address)
    _ = parts.port  # reading it raises ValueError if it is no number
    return parts
