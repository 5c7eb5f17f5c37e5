"""Files written whole or not at all (beside their place, synced, renamed), and dataclasses read from JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, or replace it, atomically: after a crash it has all of the new content, or is as it was before.

    Its folder is made if it is missing. Text is written as UTF-8, with its line ends as they are. `mode` are the permissions
    of the file before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def undone_on_failure(path: Path) -> Iterator[None]:
    """Put the file back as it was, there or not, if the block fails."""
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a value as a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content))


def read_json(path: Path, missing: Any = None) -> Any:
    """The content of a JSON file, or `missing` if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return missing


def read_value(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass made from a JSON object; keys that are no fields of it, as a later version may write, are left out.

    Raises TypeError if a field without a default is missing.
    """
    return kind(**{field.name: content[field.name] for field in fields(kind) if field.name in content})  # type: ignore[arg-type]
