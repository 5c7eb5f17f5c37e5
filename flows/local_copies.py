"""Bundles and weights that lie elsewhere, on this machine: copies by digest, shared by its processes, in bounded room."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly, Busy
from flows.files import write_whole
from flows.places import Folder, Place
from flows.pulling.bringing import bring, digest_of_file
from heads.cache_home import cache_home

# The share of the disk's free room that copies may take; one that was used within the last hour stays, however scarce room is.
SHARE_OF_DISK = 0.1
IN_USE_SECONDS = 3600.0
WAIT_SECONDS = 600.0
DIGEST_CHARS = 16
WEIGHTS = "weights"


def keep_here(place: Place) -> Path | None:
    """The bundle of a place as a folder of this machine: the folder itself, or a whole copy; None if there is no bundle.

    Raises BundleError if what is stored does not fit its digests.
    """
    from heads import bundle as bundles

    if isinstance(place, Folder):
        return place.path if place.path.is_dir() else None
    sums = place.read(bundles.SUMS)
    if sums is None:
        return None
    digest = hashlib.sha256(sums).hexdigest()
    copy = copies_root("bundles") / digest
    if not _is_whole(copy):
        with _room(copy.parent):
            _bring(place, copy, digest)
    os.utime(copy)
    return copy


def keep_file(place: Place, name: str, digest: str) -> Path:
    """A copy of a stored file whose sha256 begins with `digest`, on this machine.

    Raises AskedWrongly if it is gone, or is another file than that.
    """
    copy = copies_root(WEIGHTS) / name
    if not copy.is_file():
        with _arriving(copy.parent) as partial:
            if not copy.is_file():
                is_there = place.copy(name, partial)
                if not is_there or not digest_of_file(partial).startswith(digest):
                    problem = "is not the file that it was" if is_there else "is gone"
                    raise AskedWrongly(f"{place.address}/{name} {problem}: remove it, and start the retraining again")
                partial.replace(copy)
    os.utime(copy)
    return copy


def keep_folder(place: Place, digest: str) -> Path:
    """A copy of a stored folder of weights with this digest, on this machine.

    Raises AskedWrongly if it is gone, or holds other weights than those.
    """
    root = copies_root(WEIGHTS)
    copy = root / digest
    if not copy.is_dir():
        with _arriving(root), tempfile.TemporaryDirectory(prefix=".folder-", dir=root) as made:
            if not copy.is_dir():
                partial = Path(made) / "files"
                partial.mkdir()
                _bring_weights(place, partial, digest)
                partial.rename(copy)
    os.utime(copy)
    return copy


def _bring_weights(place: Place, folder: Path, digest: str) -> None:
    from heads.backbones import weights_digest
    from heads.errors import WeightsError

    for name in place.facts():
        place.copy(name, folder / name)
    try:
        found = weights_digest(folder)
    except WeightsError as error:
        found = str(error)
    if found != digest:
        raise AskedWrongly(f"{place.address} does not hold the weights that it held: remove it, and start the retraining again")


def keep_made(source: str, make: Callable[[Path], None], suffix: str) -> Path:
    """The file of weights that `make` writes, on this machine, named by its digest; made once, as long as the copy is here.

    `source` is what it is made from, and differs whenever the file would.
    """
    root = copies_root(WEIGHTS)
    note = root / f".{hashlib.sha256(source.encode()).hexdigest()}"
    copy = _noted(note, suffix)
    if copy is None:
        with _arriving(root) as partial:
            copy = _noted(note, suffix)
            if copy is None:
                make(partial)
                digest = digest_of_file(partial)[:DIGEST_CHARS]
                copy = root / f"{digest}{suffix}"
                partial.replace(copy)
                # After the copy, whose name is in it.
                write_whole(note, digest)
    os.utime(copy)
    return copy


def _noted(note: Path, suffix: str) -> Path | None:
    """The copy whose digest a note holds, None if it is not here or damaged."""
    try:
        copy = note.with_name(f"{note.read_text()}{suffix}")
        return copy if digest_of_file(copy).startswith(copy.stem) else None
    except FileNotFoundError:
        return None


def is_copy(path: Path) -> bool:
    """Whether a file of weights is a copy that this machine keeps, where others do not look for it."""
    return path.parent == copies_root(WEIGHTS)


@contextmanager
def _arriving(root: Path) -> Iterator[Path]:
    """A path in the folder of weights for one that arrives, which one process of the machine has at a time."""
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # What a kill left.
        for left in root.glob(".*.new"):
            left.unlink(missing_ok=True)
        for left in root.glob(".folder-*"):
            shutil.rmtree(left, ignore_errors=True)
        partial = root / ".arriving.new"
        try:
            with _room(root):
                yield partial
        finally:
            partial.unlink(missing_ok=True)
    finally:
        os.close(lock)


@contextmanager
def _room(root: Path) -> Iterator[None]:
    """Make room in a folder of copies, for the block. Raises AskedWrongly if the block finds none all the same."""
    _make_room(root)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AskedWrongly(
            f"there is no room for a copy of {root.name} at {root} ({error.strerror}): free some, or name a folder of another "
            "disk in XDG_CACHE_HOME"
        ) from None


def _bring(place: Place, copy: Path, digest: str) -> None:
    give_up_at = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            bring(_Stored(place), copy, name=place.address, digest=digest, is_ours=lambda _: True)
            return
        except Busy:
            # Another process of this machine fetches the same one.
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)


@dataclass(frozen=True)
class _Stored:
    place: Place

    def fetch(self, name: str, file: Path) -> None:
        if not self.place.copy(name, file):
            raise AskedWrongly(f"{self.place.address}/{name} is not there, though its bundle is: remove {self.place.address}")


def copies_root(kind: str) -> Path:
    """The folder of this person's copies of a kind, which is made if it is missing."""
    folder = cache_home(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AskedWrongly(
            f"there is no place for copies of {kind} at {folder} ({error.strerror}): name a folder in XDG_CACHE_HOME"
        ) from None
    return folder


def _is_whole(copy: Path) -> bool:
    from heads import bundle as bundles
    from heads.errors import BundleError

    if not copy.is_dir():
        return False
    try:
        bundles.verify(copy)
    except BundleError:
        shutil.rmtree(copy)
        return False
    return True


def _make_room(root: Path) -> None:
    """Remove the copies that were used least recently, as long as all of them take more than their share."""
    sizes = []
    for copy in root.glob("[0-9a-f]*"):
        with suppress(FileNotFoundError):
            files = copy.iterdir() if copy.is_dir() else [copy]
            sizes.append((copy.stat().st_mtime, sum(file.stat().st_size for file in files), copy))
    total = sum(size for _, size, _ in sizes)
    most = SHARE_OF_DISK * (shutil.disk_usage(root).free + total)
    for used_at, size, copy in sorted(sizes):
        if total <= most or time.time() - used_at < IN_USE_SECONDS:
            break
        shutil.rmtree(copy, ignore_errors=True) if copy.is_dir() else copy.unlink(missing_ok=True)
        total -= size
