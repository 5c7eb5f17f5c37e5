"""An S3 server over HTTP, small and real enough for every client of ours, unmodified."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class Bucket(BaseHTTPRequestHandler):
    """A bucket called `pets`; its class holds the objects, when they were written, and what was asked for."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    written_at: dict[str, float]
    # What was asked: method, key or listed prefix, and the range.
    asked: list[tuple[str, str, str]]
    page_length = 2
    refused = False
    # How many of the next requests the server is too busy for.
    busy = 0

    # A status and a code with which every request fails.
    failure: tuple[int, str] | None = None
    # Whether it knows `If-None-Match: *`; one that does not ignores it.
    knows_conditions = True
    parts: dict[str, bytes]
    lock: threading.Lock

    @classmethod
    def gets(cls) -> list[str]:
        """The keys that were fetched, whole or in part."""
        return [key for method, key, _ in cls.asked if method == "GET"]

    @classmethod
    def fetched(cls) -> list[str]:
        """The keys that were fetched whole."""
        return [key for method, key, part in cls.asked if method == "GET" and not part]

    def do_GET(self) -> None:
        if not self._is_refused():
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                self.asked.append(("LIST", query.get("prefix", [""])[0], ""))
                return self._answer(200, self._listing({name: values[0] for name, values in query.items()}))
            self._give()
        return None

    def do_HEAD(self) -> None:
        if not self._is_refused():
            self._give()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_refused():
            query = parse_qs(urlsplit(self.path).query)
            if "uploadId" in query:
                self.parts[f"{query['uploadId'][0]}/{int(query['partNumber'][0]):05}"] = content
                return self._answer(200, b"", etag=_etag(content))
            self.asked.append(("PUT", self._key(), ""))
            with self.lock:
                if self.headers.get("If-None-Match") == "*" and self.knows_conditions and self._key() in self.objects:
                    return self._fail(412, "PreconditionFailed")
                self._keep(content)
            self._answer(200, b"", etag=_etag(content))
        return None

    def do_POST(self) -> None:
        """The beginning and the end of an upload in parts."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._is_refused():
            return None
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "uploads" in query:
            number = secrets.token_hex(8)
            return self._answer(
                200, f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>".encode()
            )
        self.asked.append(("PUT", self._key(), ""))
        content = b"".join(self.parts.pop(name) for name in sorted(self.parts) if name.startswith(query["uploadId"][0]))
        self._keep(content)
        return self._answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>", etag=_etag(content))

    def _keep(self, content: bytes) -> None:
        self.objects[self._key()], self.written_at[self._key()] = content, time.time()

    def do_DELETE(self) -> None:
        if not self._is_refused():
            self.asked.append(("DELETE", self._key(), ""))
            self.objects.pop(self._key(), None)
            self._answer(204, b"")

    def _give(self) -> None:
        key, part = self._key(), self.headers.get("Range", "")
        self.asked.append((self.command, key, part))
        content = self.objects.get(key)
        if content is None:
            return self._fail(404, "NoSuchKey")
        etag, written_at = _etag(content), self.written_at.get(key, 0.0)
        if not part:
            return self._answer(200, content, etag=etag, written_at=written_at)
        first, last = (int(number) for number in part.removeprefix("bytes=").split("-"))
        if first >= len(content):
            return self._fail(416, "InvalidRange")
        return self._answer(206, content[first : last + 1], etag=etag, written_at=written_at)

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix, delimiter, start = query.get("prefix", ""), query.get("delimiter"), int(query.get("continuation-token", 0))
        items: dict[str, str] = {}
        for key in sorted(key for key in list(self.objects) if key.startswith(prefix)):
            inner, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                items[inner] = f"<CommonPrefixes><Prefix>{prefix}{inner}{delimiter}</Prefix></CommonPrefixes>"
            else:
                written_at = datetime.fromtimestamp(self.written_at.get(key, 0.0), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
                items[key] = (
                    f"<Contents><Key>{key}</Key><ETag>{_etag(self.objects[key])}</ETag><Size>{len(self.objects[key])}</Size>"
                    f"<LastModified>{written_at}</LastModified></Contents>"
                )
        end = start + self.page_length
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>" if end < len(items) else ""
        return f"<ListBucketResult>{more}{''.join(list(items.values())[start:end])}</ListBucketResult>".encode()

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/pets").lstrip("/")

    def _is_refused(self) -> bool:
        if self.busy > 0:
            type(self).busy -= 1
            self._fail(503, "SlowDown")
        elif self.failure:
            self._fail(*self.failure)
        elif self.refused:
            self._fail(403, "AccessDenied")
        elif not re.match(r"/pets(/|\?|$)", self.path):
            self._fail(404, "NoSuchBucket")
        else:
            return False
        return True

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode())

    def _answer(self, status: int, content: bytes, *, etag: str = "", written_at: float = 0.0) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", formatdate(written_at, usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    """An empty bucket behind an address that AWS's tools find in the environment."""
    handler = type("OneBucket", (Bucket,), {"objects": {}, "written_at": {}, "asked": [], "parts": {}, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    try:
        yield handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
