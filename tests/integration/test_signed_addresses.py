"""Signed addresses at a real S3 server, which checks every signature and its age."""

from __future__ import annotations

import time
from pathlib import Path

import boto3
import pytest

from flows import publishing
from flows.errors import AskedWrongly
from flows.publishing import POINTER
from tests.flows.test_publishing import holds, pull, versions
from tests.integration.radosgw import Radosgw

__all__ = ["versions"]
pytestmark = pytest.mark.slow
ADDRESS = "s3://published/models/digits"
SECONDS = 15


def test_a_consumer_without_credentials_pulls_until_the_addresses_expire(
    radosgw: Radosgw, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for name, value in radosgw.environment().items():
            patched.setenv(name, value)
        boto3.session.Session().client("s3").create_bucket(Bucket="published")
        pointer, _ = publishing.publish(versions[0], ADDRESS, name="digits", version="1")
        signed, begun = publishing.sign(ADDRESS, pointer, SECONDS), time.monotonic()
    file = tmp_path / "digits.signed"
    file.write_text("".join(f"{name} {address}\n" for name, address in signed.items()))
    pull(str(file), tmp_path / "model")
    assert holds(tmp_path / "model", versions[0])
    forged = tmp_path / "forged.signed"
    forged.write_text(file.read_text().replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    with pytest.raises(AskedWrongly, match=rf"{POINTER} is refused by its server \(403 "):
        pull(str(forged), tmp_path / "forged")
    time.sleep(max(0.0, begun + SECONDS + 2 - time.monotonic()))
    with pytest.raises(AskedWrongly, match=rf"the signed addresses in {file} expired at .* UTC; ask for new ones"):
        pull(str(file), tmp_path / "late")
    assert not (tmp_path / "late").exists()
