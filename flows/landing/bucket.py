"""Sources in S3: a prefix is mirrored in a folder, which is brought up to date by etag and size."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flows import s3
from flows.errors import AskedWrongly
from flows.files import write_whole
from flows.folders import is_trace

# The longest part of a path on nearly every file system.
_MAX_NAME_BYTES = 255
_Wanted = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Fetched:
    """The folder with a prefix's objects as files, and warnings about objects that cannot be files."""

    folder: Path
    warnings: tuple[str, ...] = ()


def fetch(address: str, storage: Path) -> Fetched:
    """Mirror `s3://bucket/prefix` in a folder under `storage`; only objects new or changed since last time are fetched.

    The server and the credentials are set as for AWS tools (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, ...). Raises
    AskedWrongly if the bucket cannot be read or holds nothing under the prefix, Unreachable if no server answers.
    """
    bucket, prefix = s3.split(address)
    folder = storage / hashlib.sha256(f"{bucket}/{prefix}".encode()).hexdigest()[:16]
    with s3.in_our_words(f"source {address!r}"):
        below = f"{prefix}/" if prefix else ""
        # A server that is silent is known before the patient client asks it.
        s3.connect_briefly().list_objects_v2(Bucket=bucket, Prefix=below, MaxKeys=1)
        client = s3.connect()
        wanted, odd = _as_files(_list(client, bucket, below))
        if not wanted:
            raise AskedWrongly(f"source {address!r} is empty: no object lies under that prefix")
        _bring_up_to_date(client, bucket, wanted, folder)
    warning = f"left out of the source: objects whose keys are no names of files ({len(odd)}), e.g. {odd[0]!r}" if odd else ""
    return Fetched(folder / "files", (warning,) if warning else ())


def _list(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Every object under the prefix: its key, its name (the key without the prefix), and its stamp (etag and size)."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            # A key that ends in a slash stands for a folder.
            if not item["Key"].endswith("/"):
                yield item["Key"], item["Key"].removeprefix(prefix), f"{item['ETag']} {item['Size']}"


def _as_files(objects: Iterable[tuple[str, str, str]]) -> tuple[_Wanted, list[str]]:
    """Key and stamp of the objects by their path in our folder, and the keys of objects that cannot be files there.

    Objects that systems and tools leave behind are in neither.
    """
    wanted: _Wanted = {}
    odd = []
    for key, name, stamp in objects:
        parts = name.split("/")
        if any(map(is_trace, parts)):
            continue
        if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
            odd.append(key)
        else:
            wanted[name] = (key, stamp)
    folders = {str(above) for name in wanted for above in PurePosixPath(name).parents}
    odd += [wanted.pop(name)[0] for name in sorted(wanted.keys() & folders)]
    return wanted, odd


def _bring_up_to_date(client: Any, bucket: str, wanted: _Wanted, folder: Path) -> None:
    files, index = folder / "files", folder / "index.json"
    stamps: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
    _remove_others(files, wanted)
    have = {path: stamp for path, stamp in stamps.items() if path in wanted and (files / path).is_file()}
    missing = {path: key for path, (key, stamp) in wanted.items() if have.get(path) != stamp}

    def get(path: str) -> str:
        goal = files / path
        goal.parent.mkdir(parents=True, exist_ok=True)
        # Beside `files`, so that a download cut short is never taken for an image.
        partial = folder / f"partial-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
        client.download_file(bucket, missing[path], str(partial))
        os.replace(partial, goal)
        return path

    try:
        with ThreadPoolExecutor(s3.NUM_CONNECTIONS) as pool:
            for path in pool.map(get, missing):
                have[path] = wanted[path][1]
    finally:
        write_whole(index, json.dumps(have, sort_keys=True))


def _remove_others(files: Path, wanted: _Wanted) -> None:
    """Remove the files that the prefix no longer has, even those that a killed fetch did not index; then empty folders."""
    for at, folders, names in os.walk(files, topdown=False):
        here = Path(at)
        for name in names:
            if (here / name).relative_to(files).as_posix() not in wanted:
                (here / name).unlink()
        for name in folders:
            with suppress(OSError):
                (here / name).rmdir()
