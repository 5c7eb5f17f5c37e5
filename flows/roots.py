"""The root of files, in a folder or in a bucket, as settings and job files name it."""

from __future__ import annotations

from pathlib import Path

# A folder, or an address such as `s3://bucket/prefix`.
Root = Path | str


def as_root(named: Root) -> Root:
    """A root as a setting or a job file names it: an address without a closing slash, or the absolute path of a folder."""
    text = str(named)
    return text.rstrip("/") if text.startswith("s3://") else Path(text).absolute()
