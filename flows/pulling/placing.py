"""The folder that a pulled bundle is put into: a new or empty one, or one that holds an older bundle and nothing else."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from flows.errors import AskedWrongly
from flows.words import first_of

AT_FDCWD, RENAME_EXCHANGE = -100, 2
OLD = "old"


class InTheWay(AskedWrongly):
    """A folder that a bundle may not be put into."""


def held_bundle(dest: Path, name: str) -> str | None:
    """The digest of the bundle in `dest`; None if the folder is empty or missing.

    Raises InTheWay if it holds anything else, or the bundle was changed.
    """
    from heads import bundle as bundles
    from heads.errors import BundleError

    if not dest.exists() and not dest.is_symlink():
        return None
    if dest.is_symlink() or not dest.is_dir():
        raise in_the_way(dest, name, "it is a link" if dest.is_symlink() else "it is no folder")
    if not any(dest.iterdir()):
        return None
    if own := sorted(
        entry.name for entry in dest.iterdir() if entry.name not in {*bundles.FILES, bundles.VOCABULARY, bundles.SUMS}
    ):
        raise in_the_way(dest, name, f"it holds {first_of(own, 3)}, which no bundle has")
    try:
        bundles.verify(dest)
        return bundles.digest(dest)
    except BundleError as error:
        raise in_the_way(dest, name, f"what it holds is no bundle as it was pulled: {error}") from None


def in_the_way(dest: Path, name: str, why: str) -> InTheWay:
    """The error for a folder that a bundle of `name` may not be put into."""
    return InTheWay(
        f"{dest} is in the way ({why}): name a folder that does not exist, an empty one, or one that holds a bundle of "
        f"{name} just as it was pulled, which gives way to the newer"
    )


def put(arrived: Path, dest: Path) -> None:
    """Make the folder `arrived` the folder `dest`; the old `dest` is then where `arrived` was, or beside it.

    If the system can, the two change places in one step, so that a reader finds the one or the other.
    """
    if not dest.exists() or not any(dest.iterdir()):
        os.replace(arrived, dest)
        return
    if _exchange(arrived, dest):
        return
    old = arrived.with_name(OLD)
    os.rename(dest, old)
    try:
        os.rename(arrived, dest)
    except OSError:
        os.rename(old, dest)
        raise


def put_back(folder: Path, dest: Path) -> None:
    """If a kill between the two steps of `put` left the old `dest` in `folder`, make it `dest` again."""
    if not os.path.lexists(dest) and (folder / OLD).is_dir():
        os.rename(folder / OLD, dest)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names on one disk in one step; False if the system cannot. (Linux can, on most file systems.)"""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
