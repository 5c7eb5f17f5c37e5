"""The contents of a folder that a person names: its files, which of them are images, and what was passed over and why."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.words import counted, first_of
from flows.workspace import DATA, STORAGE

# What systems and tools leave in folders, in lower case: nobody's images, so passed over without a word.
# fmt: off
_TRACES = frozenset({
    ".git", ".hg", ".svn", ".github", ".dvc", ".headstart", ".venv", ".cache", ".idea", ".vscode", ".ipynb_checkpoints",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems",
    ".documentrevisions-v100", ".appledouble", ".appledb", ".appledesktop", ".snapshot", ".snapshots", ".zfs", ".thumbnails",
    ".dropbox.cache", ".stfolder", ".stversions", ".sync", "__macosx", "__pycache__", "@eadir", "@tmp", "#recycle",
    "#snapshot", "lost+found", "$recycle.bin", "system volume information",
})
# fmt: on
_TRACE_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
# Pillow knows these formats by their first bytes, but reads their pixels only with a part that is not installed, or never.
_WITHOUT_PIXELS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
HIDDEN = "hidden, as its name starts with a dot"
LOOP = "a link to a folder that it lies in"
NOWHERE = "a link that leads nowhere"
OTHERS = "the data of another workspace"
_MAX_TOLD = 8
_FOLDER, _FILE = "folder", "file"
_Identity = tuple[int, int] | None


@dataclass(frozen=True)
class Passed:
    """A file or folder that was passed over, and why."""

    path: PurePosixPath
    reason: str


@dataclass(frozen=True)
class Contents:
    """All files of a folder by their paths in it, sorted, a folder's files before those of its subfolders.

    Links are followed. `passed` lists what was passed over; what systems and tools leave behind is in neither. `empty` are the
    folders in which nothing lies, maybe the folder itself.
    """

    files: tuple[PurePosixPath, ...]
    passed: tuple[Passed, ...] = ()
    empty: tuple[PurePosixPath, ...] = ()

    @property
    def images(self) -> tuple[PurePosixPath, ...]:
        """The files that are images by their endings."""
        return tuple(file for file in self.files if is_image(file.name))


@cache
def image_endings() -> tuple[str, ...]:
    """The endings that files of images have: those of every format that we read, in lower case, sorted."""
    from PIL import Image

    from heads.data.decoding import formats

    # MPO is a JPEG with more than one image, and opened as such.
    readable = {*formats(), "MPO"} - _WITHOUT_PIXELS
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in readable))


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image, by its ending."""
    return ending(name) in image_endings()


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty if it has none."""
    _, dot, last = name.rpartition(".")
    return f".{last.lower()}" if dot else ""


def is_trace(name: str) -> bool:
    """Whether this is the name of a file or folder that systems and tools leave behind, and that nobody misses."""
    lower = name.lower()
    return lower in _TRACES or lower in _TRACE_FILES or lower.startswith(("._", ".trash-", ".ds_store", ".nfs", ".fuse_hidden"))


def contents(root: Path, own: Collection[Path] = ()) -> Contents:
    """The contents of a folder and of those under it, links followed.

    The folders of `own` are left out without a word; if there are any, the data of other workspaces is passed over, too.
    Raises AskedWrongly if a folder cannot be read: files that cannot be read must not count as gone.
    """
    files: list[PurePosixPath] = []
    passed: list[Passed] = []
    empty: list[PurePosixPath] = []
    owned = {identity for folder in own if (identity := _identity(folder))}
    # A stack instead of a recursion: a folder may lie deeper than Python calls.
    ahead: list[tuple[PurePosixPath, tuple[_Identity, ...]]] = [(PurePosixPath(), ())]
    while ahead:
        here, around = ahead.pop()
        folder = root / here
        identity = _identity(folder)
        if identity in around:
            passed.append(Passed(here, LOOP))
        elif around and identity in owned:
            continue
        elif own and around and _is_data(folder):
            passed.append(Passed(here, OTHERS))
        else:
            folders, files_here, passed_here = _entries(root, here)
            empty += [] if folders or files_here or passed_here else [here]
            files += files_here
            passed += passed_here
            ahead += [(inner, (*around, identity)) for inner in reversed(folders)]
    return Contents(tuple(files), tuple(passed), tuple(empty))


def _identity(folder: Path) -> _Identity:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_data(folder: Path) -> bool:
    return folder.name == DATA and (folder.parent / STORAGE).is_dir()


def _entries(root: Path, here: PurePosixPath) -> tuple[list[PurePosixPath], list[PurePosixPath], list[Passed]]:
    """The folders and the files in a folder, both sorted, and what is passed over there."""
    folders, files, passed = [], [], []
    try:
        with os.scandir(root / here) as unsorted:
            entries = sorted(unsorted, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(root / here, error) from None
    for entry in entries:
        path = here / entry.name
        if is_trace(entry.name):
            continue
        kind = _kind(entry)
        if entry.name.startswith("."):
            if kind == _FOLDER or is_image(entry.name):
                passed.append(Passed(path, HIDDEN))
        elif kind == _FOLDER:
            folders.append(path)
        elif kind == NOWHERE:
            passed.append(Passed(path, NOWHERE))
        else:
            files.append(path)
    return folders, files, passed


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return _FOLDER
        nowhere = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError as error:
        # A link that leads to itself has no end; any other failure hides what lies there.
        nowhere = error.errno == errno.ELOOP
        if not nowhere and not is_image(entry.name):
            raise _unreadable(Path(entry.path), error) from None
    # An image that cannot be reached is a bad image: the reader of images will set it aside with a reason.
    return NOWHERE if nowhere and not is_image(entry.name) else _FILE


def _unreadable(path: Path, error: OSError) -> AskedWrongly:
    return AskedWrongly(
        f"{str(path)!r} cannot be read ({error.strerror or error}), and what cannot be read is not taken for gone: "
        "give yourself the right to read it, or take it out of the folder. Nothing was changed"
    )


def describe_left_out(others: Iterable[PurePosixPath], passed: Iterable[Passed]) -> str:
    """A warning's words on the files left out, counted by their endings, and on what was passed over; '' if there is nothing."""
    counts = Counter(ending(file.name) or "no ending" for file in others)
    shown = [f"{count} {name}" for name, count in counts.most_common(_MAX_TOLD)]
    if rest := len(counts) - len(shown):
        shown.append(counted(rest, "more ending"))
    parts = [f"{counted(counts.total(), 'file')} ({', '.join(shown)})"] if counts else []
    by_reason: dict[str, list[str]] = {}
    for one in passed:
        by_reason.setdefault(one.reason, []).append(str(one.path))
    for reason, paths in by_reason.items():
        parts.append(f"{first_of(paths, _MAX_TOLD)} ({reason})")
    return "; ".join(parts).encode(errors="backslashreplace").decode()
