"""Files that appear whole, written beside their place, brought to the disk, renamed; and values made of what JSON files hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, in place of one that was there; after a crash it is there whole, on the disk, or as it was before.

    Its folder is made where it is missing. Text is written as UTF-8, its line ends as they are. `mode` is what the umask is
    taken from.
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


def write_json(path: Path, content: Any) -> None:
    """Write a value as a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content))


def read_json(path: Path, missing: Any = None) -> Any:
    """The content of a JSON file, or `missing` where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return missing


def read_value(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass's value from JSON's fields of it; what a later version wrote beside them is left out.

    Raises TypeError where a field is missing that has no default.
    """
    return kind(**{field.name: content[field.name] for field in fields(kind) if field.name in content})  # type: ignore[arg-type]
