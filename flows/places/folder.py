"""A place that is a folder of this machine, or one that it mounts."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flows.files import write_whole
from flows.places.place import Fact


@dataclass(frozen=True)
class Folder:
    """A `flows.places.Place` that is a folder: files are read where they lie, and appear by rename."""

    path: Path
    look_seconds: ClassVar[float] = 0.1

    @property
    def address(self) -> str:
        return str(self.path)

    def within(self, name: str) -> Folder:
        return Folder(self.path / name)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: str | bytes) -> None:
        write_whole(self.path / name, content)

    def create(self, name: str, content: str | bytes) -> bool:
        goal = self.path / name
        partial = goal.with_name(f".{goal.name}.{secrets.token_hex(8)}")
        write_whole(partial, content)
        try:
            # Linked, not renamed: of two that are created at once, the second fails.
            os.link(partial, goal)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def facts(self) -> Mapping[str, Fact]:
        found = {}
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                # One that is removed meanwhile is not there.
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = _fact(entry.stat())
        return found

    def tree(self) -> Mapping[str, Fact]:
        found = {}
        for folder, _, names in os.walk(self.path):
            for file in (Path(folder, name) for name in names):
                # One that is removed meanwhile is not there.
                with suppress(FileNotFoundError):
                    found[file.relative_to(self.path).as_posix()] = _fact(file.lstat())
        return found

    def remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def copy(self, name: str, goal: Path) -> bool:
        try:
            shutil.copyfile(self.path / name, goal)
        except FileNotFoundError:
            return False
        return True

    def fetch(self, name: str) -> Path | None:
        file = self.path / name
        return file if file.is_file() else None

    @contextmanager
    def filling(self) -> Iterator[Path]:
        yield self.path


def _fact(status: os.stat_result) -> Fact:
    return Fact(str(status.st_mtime_ns), status.st_mtime_ns / 1e9, status.st_size)
