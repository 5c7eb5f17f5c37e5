"""First weights in a file, checked against their backbone once and noted on this machine: no later plan loads torch for them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.errors import AskedWrongly
from flows.files import read_json, write_json
from flows.local_copies import copies_root
from flows.records import Weights
from heads.bert_size import modality_of


def checked_file(named: str, backbone: str) -> Weights:
    """The weights in a file, or a folder, by its path, or `imagenet`'s, downloaded once, if they fit a backbone.

    A file is read again as soon as anything of it differs, its times among that; a folder is read by each process. Raises
    WeightsError if what is there does not fit.
    """
    source = named if named == "imagenet" else str(Path(named).absolute())
    note = _note(source, backbone)
    known = read_json(note) if note else None
    if isinstance(known, dict) and known.get("file") and known["file"] == _identity(Path(known["path"])):
        return Weights(known["digest"], Path(known["path"]))
    from heads import backbones

    path = backbones.imagenet_weights(backbone) if named == "imagenet" else Path(source)
    # Of before, so that what is written meanwhile differs from the note.
    file = _identity(path)
    digest = backbones.check_weights(backbones.sized(backbone, path), path)
    if modality_of(backbone) == "text":
        from heads.data.text_modality import read_vocabulary

        read_vocabulary(path, lowercase=True)
    if note and file:
        # A disk that takes no note costs time alone.
        with suppress(OSError):
            write_json(note, {"path": str(path), "file": file, "digest": digest})
    return Weights(digest, path)


def _note(source: str, backbone: str) -> Path | None:
    name = hashlib.sha256(f"{source} {backbone} {version('torchvision')}".encode()).hexdigest()
    try:
        return copies_root("checked") / f"{name}.json"
    except AskedWrongly:
        return None


def _identity(path: Path) -> list[Any] | None:
    """What changes whenever a file does, None if there is no file: a copy that keeps the file's date differs by its own."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns] if path.is_file() else None
