"""A bundle brought into a folder: a pull that was killed goes on, every file is checked, the folder changes in one step."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flows.errors import Busy
from flows.pulling import placing

BLOCK_BYTES = 2**20


class Files(Protocol):
    """Where the files of a bundle come from."""

    def fetch(self, name: str, file: Path) -> None:
        """Make `file` the bundle's file of this name; if it begins with that already, what is missing may be added to it."""
        ...


@dataclass(frozen=True)
class Folder:
    """The files of a bundle in a folder of this machine."""

    path: Path

    def fetch(self, name: str, file: Path) -> None:
        """Copy what is missing of the file."""
        with (self.path / name).open("rb") as source, file.open("ab") as copy:
            source.seek(copy.tell())
            shutil.copyfileobj(source, copy, BLOCK_BYTES)


def bring(files: Files, dest: Path, *, name: str, digest: str | None, is_ours: Callable[[str], bool]) -> None:
    """Make the folder `dest` the bundle of model `name` that has this digest (None: not known), in one step.

    `is_ours` says of the digest of the bundle in `dest` whether it is another version's of this model. What arrives lies in
    `.<dest>.pull` beside it until it is whole; a pull that was cut short goes on there. Raises InTheWay if `dest` holds anything
    else, Busy if another pull into it runs, BundleError if what arrives does not fit its digests: nothing of it is then kept.
    """
    from heads.errors import BundleError

    with _arrivals(dest) as folder:
        placing.put_back(folder, dest)
        held = placing.held_bundle(dest, name)
        if held is None or held != digest:
            if held is not None and not is_ours(held):
                raise placing.in_the_way(dest, name, f"it holds a bundle that is none of {name}'s versions")
            try:
                placing.put(_arrive(files, folder, digest), dest)
            except BundleError:
                shutil.rmtree(folder)
                raise
        shutil.rmtree(folder)


def digest_of_file(file: Path) -> str:
    """The sha256 of a file's content, as hex digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _arrivals(dest: Path) -> Iterator[Path]:
    """The folder beside `dest` in which its next bundle arrives, locked for the block; its owner's kill frees the lock."""
    folder = dest.absolute().with_name(f".{dest.absolute().name}.pull")
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another pull has just ended
            continue
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another pull into {dest} runs; wait until it ends, or name another folder") from None
            # Another pull may have ended, and removed the folder, before the lock was had.
            if _is_at(lock, folder):
                try:
                    yield folder
                finally:
                    # Empty if the pull was refused before anything arrived.
                    with suppress(OSError):
                        folder.rmdir()
                return
        finally:
            os.close(lock)


def _is_at(number: int, path: Path) -> bool:
    """Whether an open folder is the one at a path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _arrive(files: Files, folder: Path, digest: str | None) -> Path:
    """The bundle, whole, in a folder of `folder`; files that an earlier pull left there whole are not fetched again."""
    from heads import bundle as bundles
    from heads.bundle.contents import parse_sums
    from heads.errors import BundleError

    arrived = folder / "bundle"
    arrived.mkdir(exist_ok=True)
    listed = arrived / bundles.SUMS
    listed.unlink(missing_ok=True)
    files.fetch(bundles.SUMS, listed)
    if digest not in (None, bundles.digest(arrived)):
        raise BundleError(f"{bundles.SUMS} is not what was registered: its sha256 is not {digest}; register the model again")
    sums = parse_sums(listed.read_bytes(), arrived)
    for stray in {*folder.iterdir(), *arrived.iterdir()} - {arrived, listed, *_places(folder, arrived, sums)}:
        shutil.rmtree(stray) if stray.is_dir() and not stray.is_symlink() else stray.unlink()
    for name, wanted in sums.items():
        if not (arrived / name).is_file() or digest_of_file(arrived / name) != wanted:
            _fetch_whole(files, name, folder / wanted, wanted)
            os.replace(folder / wanted, arrived / name)
    bundles.verify(arrived)
    return arrived


def _places(folder: Path, arrived: Path, sums: dict[str, str]) -> set[Path]:
    return {place for name, digest in sums.items() for place in (arrived / name, folder / digest)}


def _fetch_whole(files: Files, name: str, file: Path, wanted: str) -> None:
    """Fetch a file, going on where one of its digest was left; once more from its start if the two do not fit."""
    from heads.errors import BundleError

    for _ in ("what is missing", "all of it") if file.exists() else ("all of it",):
        files.fetch(name, file)
        if digest_of_file(file) == wanted:
            return
        file.unlink()
    raise BundleError(f"{name} is not what was written (its sha256 differs from SHA256SUMS); publish or register the model again")
