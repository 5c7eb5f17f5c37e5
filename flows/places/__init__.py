"""Places: where the files below a storage root lie, a folder or a prefix of a bucket, behind one protocol."""

from __future__ import annotations

from pathlib import Path

from flows.places.bucket import Bucket
from flows.places.folder import Folder
from flows.places.place import Fact, Place, StoredFile
from flows.roots import Root, as_root

__all__ = ["Bucket", "Fact", "Folder", "Place", "Root", "StoredFile", "as_root", "open_place"]


def open_place(root: Root) -> Place:
    """The place of a folder, or of an address such as `s3://bucket/prefix`; touches neither disk nor network."""
    named = as_root(root)
    return Folder(named) if isinstance(named, Path) else Bucket(named)
