"""The DVC remote of a workspace: a folder of it at first, or a prefix of an object store; never with credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flows import addresses, s3
from flows.dataset.dvc_calls import in_our_words
from flows.dataset.pointer import parse_pointer
from flows.dataset.revisions import commit, revisions
from flows.dataset.store import open_store
from flows.errors import AskedWrongly
from flows.files import undone_on_failure, write_whole
from flows.records import Remote
from flows.workspace import STORAGE, writing

NAME = "storage"
_CONFIG = ".dvc/config"
_CORE = "[core]\n    analytics = false\n    autostage = false\n    check_update = false\n"


@dataclass(frozen=True)
class RemoteStatus:
    """The remote of a workspace as DVC's configuration has it: its name, its address or folder, and its server if it has one.

    After it was set: `pushed` and `behind` are the digests of the versions that it now holds, and of those that are not whole
    in the cache, and so stay where they were.
    """

    name: str
    address: str
    endpoint: str | None = None
    pushed: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


def parse_remote(address: str, endpoint: str | None = None) -> Remote:
    """The remote that a person names. Raises AskedWrongly if it is no `s3://bucket/prefix`, or anything in it is secret."""
    try:
        bucket, prefix = s3.split(address)
        server = None if endpoint is None else addresses.server(endpoint)
    except AskedWrongly:
        raise
    except ValueError as error:
        given = addresses.without_password(str(endpoint))
        raise AskedWrongly(f"--endpoint {given}: {error}; give the server's address, such as http://host:9000") from None
    if "@" in bucket or re.search(r"[\s?#'\"%]", address):
        raise AskedWrongly(
            f"{addresses.without_password(address)!r} is no plain s3://bucket/prefix: the remote is committed to git, so that it "
            "holds no credentials or options; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return Remote(f"s3://{bucket}/{prefix}".rstrip("/"), server)


def check_remote(remote: Remote) -> None:
    """Raise AskedWrongly if the remote's server does not answer, or does not let its prefix be listed."""
    bucket, prefix = s3.split(remote.address)
    with s3.in_our_words(f"the data remote {remote.address}"):
        s3.connect_briefly(remote.endpoint).list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/".lstrip("/"), MaxKeys=1)


def read_remote(workspace: Path) -> RemoteStatus:
    """The workspace's remote. Raises AskedWrongly if it has none."""
    store = open_store(workspace)
    if store.remote_name is None:
        raise AskedWrongly(f"{workspace} has no DVC remote; give it one with `headstart data remote s3://bucket/prefix`")
    if store.bucket:
        return RemoteStatus(store.remote_name, store.bucket.address, store.bucket.endpoint)
    return RemoteStatus(store.remote_name, str(store.remote.parent.parent) if store.remote else "of a kind that only DVC reads")


def set_remote(workspace: Path, remote: Remote) -> RemoteStatus:
    """Make this the workspace's remote: push the versions of its history to it, then commit the configuration.

    Raises AskedWrongly if it does not answer, HeadstartError if a push fails; then the configuration is as it was.
    """
    check_remote(remote)
    with writing(workspace), undone_on_failure(workspace / _CONFIG):
        name = _write_remote(workspace, remote)
        digests = dict.fromkeys(parse_pointer(one.text, one.name).digest for one in revisions(workspace))
        store = open_store(workspace)
        behind = store.push_versions(digests) if digests else ()
        if digests:
            store.pack()
        commit(workspace, [_CONFIG], f"Data remote {remote.address}")
    pushed = tuple(digest for digest in digests if digest not in behind)
    return RemoteStatus(name, remote.address, remote.endpoint, pushed, behind)


def _write_remote(workspace: Path, remote: Remote) -> str:
    from dvc.config import Config

    name = open_store(workspace).remote_name or NAME
    with in_our_words(workspace), Config(str(workspace / ".dvc")).edit("repo") as config:
        config.setdefault("core", {})["remote"] = name
        config.setdefault("remote", {})[name] = _fields(remote)
    return name


def init_store(workspace: Path, remote: Remote | None) -> None:
    """Make `.dvc` in a git repository, with this remote, or one that is a folder of the workspace."""
    from dvc.repo import Repo

    with in_our_words(workspace):
        Repo.init(str(workspace)).close()
    core, section = _remote_text(remote)
    (workspace / _CONFIG).write_bytes(_CORE.encode() + core + section)


def add_remote(workspace: Path, remote: Remote | None) -> bool:
    """Add this, or a folder of the workspace, as the default remote to a DVC configuration that has none; the rest stays."""
    config = workspace / _CONFIG
    text = config.read_bytes() if config.exists() else b""
    end = line_end(text)
    core, described = (part.replace(b"\n", end) for part in _remote_text(remote))
    section = re.search(rb"(?m)^[ \t]*\[[ \t]*['\"]?core['\"]?[ \t]*\][^\r\n]*(?:\r?\n|\Z)", text)
    start = b"" if not text or text.endswith(b"\n") else end
    if section is None:
        text = text + start + b"[core]" + end + core + described
    else:
        head = text[: section.end()]
        head += b"" if head.endswith(b"\n") else end
        rest = text[section.end() :]
        text = head + core + rest + (start if rest else b"") + described
    write_whole(config, text)
    return True


def line_end(text: bytes) -> bytes:
    """The line end of a person's file."""
    return b"\r\n" if b"\r\n" in text else b"\n"


def _remote_text(remote: Remote | None) -> tuple[bytes, bytes]:
    """Two parts of a DVC configuration: the line under [core] for the default remote, and that remote's section."""
    fields = _fields(remote) if remote else {"url": f"../{STORAGE}/remote"}
    lines = "".join(f"    {key} = {value}\n" for key, value in fields.items())
    return f"    remote = {NAME}\n".encode(), f"['remote \"{NAME}\"']\n{lines}".encode()


def _fields(remote: Remote) -> dict[str, str]:
    return {"url": remote.address, **({"endpointurl": remote.endpoint} if remote.endpoint else {})}
