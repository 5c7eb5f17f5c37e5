"""The files of a bundle's folder: plain files of known names and sizes, each read once and checked against its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from heads.errors import BundleError

SUMS = "SHA256SUMS"
WEIGHTS = "weights.safetensors"
FILES = (WEIGHTS, "variant.json", "classes.json", "preprocess.json", "card.md")
TEXTS = FILES[1:]
# Beside them in a bundle that reads texts.
VOCABULARY = "vocab.txt"

MAX_SUMS_BYTES = 4096
# Names and measures of a hundred thousand classes take a tenth of it.
MAX_TEXT_BYTES = 64 * 2**20
MAX_WEIGHTS_BYTES = 64 * 2**30
BLOCK_BYTES = 2**20
# How often a folder may be exchanged for a newer bundle while its files are being opened.
MAX_EXCHANGES = 20
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# Neither a link is followed nor a pipe waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Contents:
    """The open files of a bundle, by name, and the digests that its SHA256SUMS states."""

    path: Path
    files: Mapping[str, BinaryIO]
    sums: Mapping[str, str]

    def size(self, name: str) -> int:
        """A file's size in bytes, without reading it."""
        return os.fstat(self.files[name].fileno()).st_size

    def read(self, name: str, most: int = MAX_TEXT_BYTES) -> bytes:
        """A file's content, checked against its digest. Raises BundleError if it differs or is longer than `most` bytes."""
        content = _read(self.path, name, self.files[name], most)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, name: str) -> None:
        """Check a file against its digest, block by block. Raises BundleError if it differs or is larger than any bundle's."""
        most = MAX_WEIGHTS_BYTES if name == WEIGHTS else MAX_TEXT_BYTES
        if self.size(name) > most:
            raise _too_long(self.path, name, most)
        file, found = self.files[name], hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            found.update(block)
        self._compare(name, found.hexdigest())

    def _compare(self, name: str, found: str) -> None:
        if found != self.sums[name]:
            raise BundleError(
                f"{self.path}: {name} is not what was written (its sha256 differs from {SUMS}); pull the bundle again"
            )


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The bundle in a folder, all its files open for the block: a newer bundle may take the folder's place meanwhile.

    Raises BundleError, naming the file, if one is missing, too many, a link or anything else than a plain file.
    """
    with ExitStack() as held:
        files = _open_all(path, held)
        sums = _read_sums(path, files[SUMS])
        if missing := sorted(sums.keys() - files.keys()):
            raise BundleError(f"{path} is no whole bundle: it lacks {', '.join(missing)}; pull it again")
        if extra := sorted(set(os.listdir(path)) - {*sums, SUMS}):
            raise BundleError(
                f"{path} holds {', '.join(extra)}, which the bundle does not list; remove it or pull the bundle again"
            )
        yield Contents(path, files, sums)


def digest_of(path: Path) -> str:
    """The sha256 of a bundle's SHA256SUMS as 64 hex digits. Raises BundleError without one."""
    with ExitStack() as held:
        return hashlib.sha256(_read(path, SUMS, _open(path, SUMS, held), MAX_SUMS_BYTES)).hexdigest()


def parse_sums(content: bytes, path: Path) -> dict[str, str]:
    """The digests by file that the content of a SHA256SUMS states. Raises BundleError if they are not those of a bundle."""
    lines = [_LINE.fullmatch(line) for line in content.decode(errors="replace").splitlines()]
    sums = {line[2]: line[1] for line in lines if line}
    if len(sums) != len(lines) or not are_files(sums):
        listed = ", ".join(f"{name!r}" for name in sorted(sums)) or "nothing"
        raise BundleError(f"{path}: {SUMS} lists {listed}; a bundle has {', '.join(sorted(FILES))}, a line each")
    return sums


def are_files(names: Collection[str]) -> bool:
    """Whether these are the names of a bundle's files, but for its SHA256SUMS."""
    return set(names) - {VOCABULARY} == set(FILES)


def parse_json(content: bytes, name: str) -> object:
    """The value in a JSON file. Raises ValueError if it is none, or nested too deeply to be read."""
    try:
        value: object = json.loads(content)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    return value


def _open_all(path: Path, held: ExitStack) -> dict[str, BinaryIO]:
    for _ in range(MAX_EXCHANGES):
        with ExitStack() as tried:
            before = _identity(path)
            try:
                files = {name: _open(path, name, tried) for name in (SUMS, *FILES)}
                if os.path.lexists(path / VOCABULARY):
                    files[VOCABULARY] = _open(path, VOCABULARY, tried)
            except BundleError:
                if _identity(path) == before:
                    raise
                continue
            if _identity(path) == before:
                held.push(tried.pop_all())
                return files
    raise BundleError(f"{path} is exchanged again and again while it is being opened; stop what writes there")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open(path: Path, name: str, held: ExitStack) -> BinaryIO:
    try:
        mode = (path / name).lstat().st_mode
        if not stat.S_ISREG(mode):
            raise BundleError(f"{path}: {name} is {'a link' if stat.S_ISLNK(mode) else 'no plain file'}; pull the bundle again")
        return held.enter_context(os.fdopen(os.open(path / name, _FLAGS), "rb"))
    except OSError as error:
        raise BundleError(f"{path} is no whole bundle: {name} cannot be read ({error.strerror}); pull it again") from error


def _read(path: Path, name: str, file: BinaryIO, most: int) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise _too_long(path, name, most)
    return content


def _too_long(path: Path, name: str, most: int) -> BundleError:
    return BundleError(f"{path}: {name} is longer than the {most} bytes that it may have; this is no bundle of Headstart")


def _read_sums(path: Path, file: BinaryIO) -> dict[str, str]:
    return parse_sums(_read(path, SUMS, file, MAX_SUMS_BYTES), path)
