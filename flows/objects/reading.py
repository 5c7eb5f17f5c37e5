"""Reading objects below a prefix of an S3 server, from many threads, through minutes in which it refuses or is silent."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterator
from threading import Event, Lock
from typing import Any

from flows import s3
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.records import Remote

LOG = logging.getLogger(__name__)
NUM_THREADS = 16
# A server that is restarted, or overloaded at the start of a night, is back by then.
PATIENCE_SECONDS = 180.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 15.0
SIGNED_SECONDS = 900
MISSING, TOO_MANY, SERVER_ERROR = 404, 429, 500
_NO_BUCKET = "NoSuchBucket"
# Where a DVC remote has its objects.
OBJECTS = "files/md5/"
_GONE = Event()


def object_key(digest: str) -> str:
    """The key of an object below a DVC remote."""
    return f"{OBJECTS}{digest[:2]}/{digest[2:]}"


class Missing(HeadstartError):
    """An object that the remote does not have."""


class Reader:
    """The objects below a remote's prefix; one instance serves all threads of a process.

    What fails for a while (answers of 5xx, SlowDown, broken or silent connections) is tried again with growing waits, with one
    line in the log. Raises Missing, AskedWrongly if the server refuses (wrong keys, no rights), Unreachable after
    PATIENCE_SECONDS.
    """

    def __init__(self, remote: Remote, num_threads: int = NUM_THREADS, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.remote, self._patience = remote, patience_seconds
        self.bucket, self._prefix = s3.split(remote.address)
        self._client = s3.connect(endpoint=remote.endpoint, num_connections=num_threads)
        # Readers ask beside the threads that fetch ahead of them.
        self._session = _session(self._client.meta.endpoint_url, 4 * num_threads)
        self._lock, self._has_told = Lock(), False
        self.num_requests = self.num_bytes = 0

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from `start` up to `end`."""
        started, wait = time.monotonic(), FIRST_WAIT_SECONDS
        while True:
            content, trouble = self._ask(key, start, end)
            if content is not None:
                with self._lock:
                    self.num_requests += 1
                    self.num_bytes += len(content)
                return content
            if time.monotonic() - started + wait > self._patience:
                raise Unreachable(
                    f"the data remote {self.remote.address} did not serve {key} for {self._patience:.0f} s: {trouble}. See to "
                    "its server, then run this again: it goes on where it was"
                )
            self._tell(trouble)
            # Not all threads at once again.
            _GONE.wait(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the objects below a prefix of the remote's, without it."""
        yield from (name for name, _ in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        """The same names, each with when its object was written, in seconds since 1970."""
        whole = self._at(prefix)
        with s3.in_our_words(f"the data remote {self.remote.address}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=whole)
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(whole), entry["LastModified"].timestamp()

    def write(self, key: str, content: bytes) -> None:
        """Put an object, whole."""
        with s3.in_our_words(f"the data remote {self.remote.address}", doing="written"):
            self._client.put_object(Bucket=self.bucket, Key=self._at(key), Body=content)

    def remove(self, key: str) -> None:
        """Remove an object."""
        with s3.in_our_words(f"the data remote {self.remote.address}", doing="written"):
            self._client.delete_object(Bucket=self.bucket, Key=self._at(key))

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _ask(self, key: str, start: int | None, end: int | None) -> tuple[bytes | None, str]:
        """The content, or None and in words what kept the server from giving it this time."""
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError, HTTPClientError

        # Signed addresses over one session: half of the time that a call of the client takes.
        with s3.in_our_words(f"the data remote {self.remote.address}"):
            asked = {"Bucket": self.bucket, "Key": self._at(key)}
            address = self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=SIGNED_SECONDS)
        headers = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
        try:
            answer = self._session.send(AWSRequest("GET", address, headers=headers).prepare())
            content: bytes = answer.content
        except (HTTPClientError, BotoCoreError, OSError) as error:
            return None, _without_signature(str(error))
        if answer.status_code < 300:
            return content, ""
        code = _code(content)
        if answer.status_code == MISSING and code != _NO_BUCKET:
            raise Missing(f"{self.remote.address}/{key}")
        if answer.status_code >= SERVER_ERROR or answer.status_code == TOO_MANY or code in ("SlowDown", "RequestTimeout"):
            return None, f"it answered {answer.status_code} {code}".strip()
        raise AskedWrongly(
            f"the data remote {self.remote.address} refuses {key}: {answer.status_code} {code}. Check the bucket, and this "
            "node's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and its clock"
        )

    def _tell(self, trouble: str) -> None:
        with self._lock:
            if self._has_told:
                return
            self._has_told = True
        LOG.warning("the data remote %s is in trouble (%s); trying again", self.remote.address, trouble)


def _session(endpoint: str, num_connections: int) -> Any:
    import os

    from botocore.httpsession import URLLib3Session
    from botocore.utils import get_environ_proxies

    verify = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or True
    return URLLib3Session(
        verify=verify,
        proxies=get_environ_proxies(endpoint),
        timeout=(s3.CONNECT_TIMEOUT_SECONDS, s3.READ_TIMEOUT_SECONDS),
        max_pool_connections=num_connections,
    )


def _code(content: bytes) -> str:
    found = re.search(rb"<Code>([^<]*)</Code>", content)
    return found[1].decode(errors="replace") if found else ""


def _without_signature(text: str) -> str:
    """An error's words without the signature of the address in it."""
    return re.sub(r"\?[^\s'\"]*", "", text)
