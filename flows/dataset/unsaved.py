"""Files in `data/` that no data version holds, and that a checkout would remove."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flows.dataset.pointer import parse_pointer
from flows.dataset.revisions import revisions
from flows.dataset.store import Store
from flows.errors import AskedWrongly
from flows.folders import is_trace
from flows.workspace import DATA, find, md5_of


def refuse_unsaved(store: Store) -> None:
    """Raise AskedWrongly if `data/` has files that no version has by that name and md5: a checkout would remove them."""
    data = store.workspace / DATA
    left = {path.relative_to(data).as_posix(): path for path in _files(data) if not is_trace(path.name)}
    digests: dict[str, str | None] = {}
    for version in _versions(store):
        if not left:
            return
        listing = store.listing(version) if find(version, store.folders) else {}
        for name in left.keys() & listing.keys():
            digests[name] = digests[name] if name in digests else _md5(left[name])
            if digests[name] == listing[name]:
                del left[name]
    # A checkout leaves alone the files that DVC ignores.
    for name in store.ignored(left) if left else ():
        left.pop(name, None)
    if left:
        raise AskedWrongly(
            f"{data} has changes that no data version holds, and a checkout would remove them ({len(left)}), "
            f"e.g. {min(left)}. Run an ingest that was cut short again, or move them out of {data}, to the data's source where "
            "an ingest is to bring them. Nothing was changed"
        )


def _files(data: Path) -> Iterator[Path]:
    """All files in a folder and below, and all links, those to folders, too."""
    for folder, folders, names in os.walk(data):
        yield from (Path(folder, name) for name in names)
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())


def _versions(store: Store) -> Iterator[str]:
    """The digests of all versions in the history, that of the present `data.dvc` first."""
    yield store.pointer.digest
    for revision in revisions(store.workspace):
        yield parse_pointer(revision.text, revision.name).digest


def _md5(path: Path) -> str | None:
    try:
        return md5_of(path)
    except OSError:
        return None
