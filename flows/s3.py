"""The S3 client, and its errors in our words. The server and the credentials are set as for AWS tools."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from flows.errors import AskedWrongly, Unreachable

NUM_CONNECTIONS = 8
CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
# A check is made again once, so that one of a silent server is over within ten seconds.
BRIEF_RETRIES, BRIEF_TIMEOUT_SECONDS = 1, 4
# With pauses that double each time, a server may be away for half a minute.
PATIENT_ATTEMPTS = 8
MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
THERE_ALREADY = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
KEYS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to those of someone who may read and write there"
SERVER = "the server is the one that AWS_ENDPOINT_URL_S3 or the AWS profile names, else Amazon's"
# What to do about an error of S3, by its code.
REMEDIES = {
    "NoSuchBucket": f"there is no such bucket: make it, or name another; {SERVER}",
    "AccessDenied": f"access is refused: {KEYS}",
    "403": f"access is refused: {KEYS}",
    "InvalidAccessKeyId": f"the server does not know the access key: {KEYS}; {SERVER}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {KEYS}",
    "ExpiredToken": "the session token has expired: get a new one (`aws sso login`, or AWS_SESSION_TOKEN with its two keys)",
    "InvalidToken": "the session token is wrong: unset AWS_SESSION_TOKEN, or set it with the two keys that came with it",
    "RequestTimeTooSkewed": "the clock of this machine differs from the server's by more than 15 minutes: set it (timedatectl)",
    "NotImplemented": "the server knows no conditional puts (If-None-Match), which locks need: take one that does",
}


def split(address: str) -> tuple[str, str]:
    """The bucket and the prefix, without slashes around it, of an address such as `s3://bucket/prefix`.

    Raises AskedWrongly if it is none, or names no bucket.
    """
    parts = urlsplit(address)
    if parts.scheme != "s3" or not parts.netloc:
        raise AskedWrongly(f"{address!r} names no bucket; write s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def connect(
    signature: str | None = None,
    *,
    endpoint: str | None = None,
    num_connections: int = NUM_CONNECTIONS,
    num_attempts: int = 3,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
) -> Any:
    """A boto3 client of S3 (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), which threads may share.

    A signature of None is of AWS's choice; an `endpoint` goes before that of the environment.
    """
    import boto3.session
    from botocore.config import Config

    settings = Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=read_timeout_seconds,
        retries={"max_attempts": num_attempts, "mode": "standard"},
        max_pool_connections=num_connections,
        # Servers other than Amazon's do not know the trailing checksums of new clients.
        request_checksum_calculation="when_required",
        signature_version=signature,
    )
    # boto3's default session would keep the first credentials of this process.
    return boto3.session.Session().client("s3", config=settings, endpoint_url=endpoint)


def connect_briefly(endpoint: str | None = None) -> Any:
    """A client for a check before anything is started: a server that is silent is known within seconds."""
    return connect(endpoint=endpoint, num_attempts=BRIEF_RETRIES, read_timeout_seconds=BRIEF_TIMEOUT_SECONDS)


def shared() -> Any:
    """A client that the threads of this process share, for the AWS settings of now; it tries again where a server is away."""
    return _shared(os.getpid(), tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _shared(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    return connect(num_attempts=PATIENT_ATTEMPTS)


def put_if_absent(client: Any, named: Mapping[str, str], content: bytes) -> bool:
    """Put an object, which is `named` by Bucket and Key, if there is none, and say whether it was put."""
    try:
        client.put_object(**named, Body=content, IfNoneMatch="*")
    except Exception as error:
        if code_of(error) in THERE_ALREADY:
            return False
        raise
    return True


@contextmanager
def in_our_words(what: str, *, doing: str = "read") -> Iterator[None]:
    """Turn errors of boto3 in the block into ours; `what` says with which address, in words, and `doing` what could not be done.

    Raises Unreachable if no server answers, AskedWrongly on credentials, rights, and everything else.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError

    try:
        yield
    except (ConnectionError, HTTPClientError) as error:
        raise Unreachable(f"the S3 server of {what} does not answer: {error}. Check AWS_ENDPOINT_URL_S3") from error
    except NoCredentialsError as error:
        raise AskedWrongly(f"no S3 credentials for {what}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (ClientError, BotoCoreError, Boto3Error, ValueError) as error:
        if isinstance(error, AskedWrongly):
            raise
        if _is_passing(error):
            raise Unreachable(f"the S3 server of {what} is out of order: {error}. Try again, or look after the server") from error
        remedy = REMEDIES.get(code_of(error))
        raise AskedWrongly(f"{what} cannot be {doing}: {remedy or error}" + (f" ({error})" if remedy else "")) from error


def is_missing(error: Exception) -> bool:
    """Whether S3 says that there is no such object."""
    return code_of(error) in MISSING


def code_of(error: Exception) -> str:
    """S3's code for what is wrong, such as `NoSuchBucket`; '' if it is no error of S3's."""
    # An upload of a file wraps it.
    for one in (error, error.__context__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _is_passing(error: Exception) -> bool:
    """Whether the server is at fault, or asks for patience, so that a later try may succeed."""
    response = getattr(error, "response", None) or getattr(error.__context__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 and code_of(error) != "NotImplemented"
