"""What tests of several machines stand on: an S3 server, a way to it that can be disturbed, and words where neither can be."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.integration import nodes
from tests.integration import radosgw as ceph
from tests.integration.disturbed import Way
from tests.integration.radosgw import Radosgw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def way(radosgw: Radosgw) -> Iterator[tuple[Way, str]]:
    """A way to the server, and its endpoint."""
    way = Way(radosgw.port)
    with way.open("127.0.0.1") as endpoint:
        yield way, endpoint


def _client(radosgw: Radosgw, endpoint: str, *, read_seconds: float = 60) -> Any:
    keys = {"aws_access_key_id": radosgw.access_key, "aws_secret_access_key": radosgw.secret_key, "region_name": "us-east-1"}
    config = Config(read_timeout=read_seconds, retries={"total_max_attempts": 1, "mode": "standard"})
    return boto3.client("s3", endpoint_url=endpoint, config=config, **keys)


def test_an_object_is_put_once_and_read_back_through_the_way_and_the_servers_log_counts_it(
    radosgw: Radosgw, way: tuple[Way, str]
) -> None:
    client, before = _client(radosgw, way[1]), len(radosgw.requests())
    client.create_bucket(Bucket="plain")
    content = bytes(range(256)) * 40_000
    client.put_object(Bucket="plain", Key="one", Body=content, IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="plain", Key="one", Body=b"another", IfNoneMatch="*")
    assert client.get_object(Bucket="plain", Key="one")["Body"].read() == content
    asked = [("PUT", "/plain", 200), ("PUT", "/plain/one", 200), ("PUT", "/plain/one", 412), ("GET", "/plain/one", 200)]
    assert radosgw.requests(before) == asked


def test_wrong_keys_are_refused(radosgw: Radosgw) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        _client(Radosgw(radosgw.folder, radosgw.port, secret_key="another"), radosgw.endpoint).list_buckets()


def test_a_busy_way_answers_503_and_a_client_that_tries_again_gets_through(radosgw: Radosgw, way: tuple[Way, str]) -> None:
    disturbed, endpoint = way
    client = _client(radosgw, endpoint)
    client.create_bucket(Bucket="busy")
    with disturbed.busy():
        with pytest.raises(ClientError, match="SlowDown") as told:
            client.put_object(Bucket="busy", Key="one", Body=bytes(2**20))
        assert told.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert disturbed.hits == 1
    client.put_object(Bucket="busy", Key="one", Body=bytes(2**20))


def test_a_silent_way_lets_clients_wait_until_they_give_up(radosgw: Radosgw, way: tuple[Way, str]) -> None:
    disturbed, endpoint = way
    client = _client(radosgw, endpoint, read_seconds=1)
    begun, hits = time.monotonic(), disturbed.hits
    with disturbed.silent(), pytest.raises(ReadTimeoutError):
        assert client.list_buckets()["Buckets"]
    assert time.monotonic() - begun >= 1
    assert disturbed.hits > hits
    assert client.list_buckets()["Buckets"]


def test_where_the_programs_are_absent_the_reason_names_them_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "radosgw-admin" in str(ceph.missing())
    assert str(ceph.missing()).endswith("apt-get install radosgw ceph-mon ceph-osd ceph-base ceph-common")
    assert "the programs ip, unshare" in str(nodes.missing())
    assert "iproute2" in str(nodes.missing())


def test_where_namespaces_are_not_allowed_the_reason_says_so_and_how_they_would_be() -> None:
    if reason := nodes.missing():
        pytest.skip(reason)
    told = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-sys_admin",
            sys.executable,
            "-c",
            "from tests.integration import nodes; print(nodes.missing())",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert "namespaces are not allowed here (unshare: unshare failed: Operation not permitted)" in told
    assert "--privileged" in told
