"""The first weights of works: stored below a storage root in a bucket, so that no worker has to reach the flow's disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from flows.kept import keep_file
from flows.places import Folder, Place
from flows.records import Weights


def store_weights(storage: Place, used: Iterable[Weights]) -> None:
    """Store the files of these weights, each once, by its digest; in a folder none: workers read the files themselves."""
    if isinstance(storage, Folder):
        return
    place = storage.within("weights")
    for name, path in {_name(weights.digest, weights.path): weights.path for weights in used if weights.path}.items():
        if not place.exists(name):
            with place.filling() as local:
                (local / name).symlink_to(path)


def fetch_weights(storage: Place, weights: Weights) -> Weights:
    """The weights with a file that this machine reaches. Raises AskedWrongly if what is stored is gone, or another file."""
    if weights.path is None or isinstance(storage, Folder):
        return weights
    return replace(weights, path=keep_file(storage.within("weights"), _name(weights.digest, weights.path), weights.digest))


def _name(digest: str, path: Path) -> str:
    return f"{digest}{path.suffix}"
