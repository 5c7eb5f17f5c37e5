"""Pulls by signed addresses, without credentials: what a consumer is told where they are of no use, and how a pull goes on."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from flows import publishing
from flows.cli import models
from flows.errors import AskedWrongly, Unreachable
from flows.pulling import InTheWay
from flows.stages import delivery
from tests import object_store
from tests.flows.test_publishing import ADDRESS, bucket, holds, made, pull, versions

__all__ = ["bucket", "versions"]


@pytest.fixture
def signed(bucket: type[object_store.Bucket], versions: tuple[Path, Path], tmp_path: Path) -> Path:
    """A file of signed addresses of the first version."""
    return publish(versions[0], "1", tmp_path / "digits.signed")


def publish(bundle: Path, version: str, file: Path, seconds: int = 600) -> Path:
    pointer, _ = publishing.publish(bundle, ADDRESS, name="digits", version=version)
    lines = publishing.sign(ADDRESS, pointer, seconds).items()
    file.write_text("".join(f"{name} {address}\n" for name, address in lines))
    return file


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)


def test_a_consumer_without_credentials_pulls_and_the_newer_version_takes_the_place_of_the_earlier(
    signed: Path, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, dest = publish(versions[1], "2", tmp_path / "newer.signed"), tmp_path / "model"
    without_credentials(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        AskedWrongly, match=r"another version is published by now .*models publish NAME s3://BUCKET/PREFIX --expires"
    ):
        pull(str(signed), dest)
    assert not dest.exists()
    pull(str(newer), dest)
    assert holds(dest, versions[1])
    done = CliRunner().invoke(models.app, ["pull", "./newer.signed", "other"])
    assert (done.exit_code, done.stderr) == (0, "other holds digits version 2\n")
    assert holds(tmp_path / "other", versions[1])


def test_a_pull_from_signed_addresses_replaces_an_earlier_version_and_nothing_else(
    signed: Path, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest, foreign = tmp_path / "model", made(tmp_path / "foreign", ("ant", "bee"))
    pull(str(signed), dest)
    publish(versions[1], "2", signed)
    without_credentials(monkeypatch)
    pull(str(signed), dest)
    assert holds(dest, versions[1])
    with pytest.raises(InTheWay, match="none of digits's versions"):
        pull(str(signed), foreign)


def test_a_pull_that_broke_off_is_told_and_goes_on_where_it_was(
    bucket: type[object_store.Bucket], signed: Path, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (versions[0] / "weights.safetensors").read_bytes()
    answer = bucket._answer

    def cut(handler: object_store.Bucket, status: int, content: bytes, **more: str | float) -> None:
        if len(content) < len(weights):
            return answer(handler, status, content, **more)  # type: ignore[arg-type]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:1_000_000])
        handler.close_connection = True
        return None

    with monkeypatch.context() as patched:
        patched.setattr(bucket, "_answer", cut)
        with pytest.raises(Unreachable, match=r"weights\.safetensors broke off; what came is kept, pull again"):
            pull(str(signed), tmp_path / "model")
    bucket.asked.clear()
    pull(str(signed), tmp_path / "model")
    assert holds(tmp_path / "model", versions[0])
    asked = {key.rpartition("/")[2]: part for _, key, part in bucket.asked}
    assert asked["weights.safetensors"] == f"bytes=1000000-{len(weights) - 1}"
    assert "card.md" not in asked, "what came whole is not fetched again"


def test_a_server_that_gives_files_whole_alone_is_taken_at_its_word(
    bucket: type[object_store.Bucket], signed: Path, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = bucket._give

    def whole(handler: object_store.Bucket) -> None:
        del handler.headers["Range"]
        given(handler)

    digest = publishing.publish(versions[0], ADDRESS, name="digits", version="1")[0].files["weights.safetensors"].sha256
    (tmp_path / ".model.pull").mkdir()
    (tmp_path / ".model.pull" / digest).write_bytes((versions[0] / "weights.safetensors").read_bytes()[:5000])
    monkeypatch.setattr(bucket, "_give", whole)
    pull(str(signed), tmp_path / "model")
    assert holds(tmp_path / "model", versions[0])


def test_addresses_that_expired_or_are_refused_are_told_without_their_signatures(
    bucket: type[object_store.Bucket], signed: Path, tmp_path: Path
) -> None:
    bucket.refused = True
    with pytest.raises(AskedWrongly, match=r"published\.json is refused by its server \(403 ") as refused:
        pull(str(signed), tmp_path / "model")
    assert "X-Amz" not in str(refused.value)
    signed.write_text(re.sub(r"X-Amz-Date=\w+", "X-Amz-Date=20260101T120000Z", signed.read_text()))
    with pytest.raises(AskedWrongly, match=f"addresses in {signed} expired at 2026-01-01 12:10 UTC; ask for new ones: headstart"):
        pull(str(signed), tmp_path / "model")
    assert list(tmp_path.iterdir()) == [signed], "nothing is left of it"


def test_what_is_no_file_of_signed_addresses_is_refused(
    bucket: type[object_store.Bucket], signed: Path, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = signed.read_text()
    for text, words in [
        ("", "holds no signed addresses of a published model, published.json among them"),
        (lines.replace("published.json ", "other.json "), "published.json among them"),
        ("hello\n", "line 1 of .* is no file's name and its signed address, .*: 'hello'"),
        (lines + "card.md file:///etc/passwd\n", r"line \d+ of .*'card.md file:///etc/passwd'"),
        ("x" * 70_000, "longer than 65536 bytes"),
    ]:
        signed.write_text(text)
        with pytest.raises(AskedWrongly, match=words):
            pull(str(signed), tmp_path / "model")
    signed.write_text(lines)
    address = lines.split()[1]
    port = urlsplit(address).port
    signed.write_text(lines.replace(f":{port}/", ":9/"))
    with pytest.raises(Unreachable, match="does not answer, or broke off"):
        pull(str(signed), tmp_path / "model")
    signed.write_text(lines)
    with pytest.raises(AskedWrongly, match="is a file, and nothing can be published there"):
        publishing.publish(versions[1], str(signed), name="digits", version="2")
    done = CliRunner().invoke(models.app, ["pull", address, str(tmp_path / "model")])
    assert isinstance(done.exception, AskedWrongly)
    assert "keep all lines" in str(done.exception)
    with pytest.raises(AskedWrongly, match="a web address is one file"):
        delivery.open_origin(None, "https://example.com/a")  # type: ignore[arg-type]
