"""The S3 client, and its errors in our words. The server and the credentials are set as for AWS tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from flows.errors import AskedWrongly, Unreachable

NUM_CONNECTIONS = 8
CONNECT_TIMEOUT_SECONDS = 5
MISSING = frozenset({"NoSuchKey", "404", "NotFound"})


def split(address: str) -> tuple[str, str]:
    """The bucket and the prefix, without slashes around it, of an address such as `s3://bucket/prefix`.

    Raises AskedWrongly if it is none, or names no bucket.
    """
    parts = urlsplit(address)
    if parts.scheme != "s3" or not parts.netloc:
        raise AskedWrongly(f"{address!r} names no bucket; write s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def connect(signature: str | None = None, *, endpoint: str | None = None, num_connections: int = NUM_CONNECTIONS) -> Any:
    """A boto3 client of S3 (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), which threads may share.

    A signature of None is of AWS's choice; an `endpoint` goes before that of the environment.
    """
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        retries={"max_attempts": 3, "mode": "standard"},
        max_pool_connections=num_connections,
        # Servers other than Amazon's do not know the trailing checksums of new clients.
        request_checksum_calculation="when_required",
        signature_version=signature,
    )
    return boto3.client("s3", config=settings, endpoint_url=endpoint)


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
        raise AskedWrongly(f"{what} cannot be {doing}: {error}") from error


def is_missing(error: Exception) -> bool:
    """Whether S3 says that there is no such object."""
    return getattr(error, "response", {}).get("Error", {}).get("Code") in MISSING
