"""The first weights of works: stored below the storage root, so that no worker has to reach what only the flow's machine has."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from flows.kept import is_copy, keep_file
from flows.places import Folder, Place
from flows.records import Weights


def store_weights(storage: Place, used: Iterable[Weights]) -> None:
    """Store the files of these weights, each once, by its digest; in a folder only copies: workers read a plan's own files."""
    place = storage.within("weights")
    for name, path in {_name(weights.digest, weights.path): weights.path for weights in used if weights.path}.items():
        if isinstance(place, Folder):
            if is_copy(path) and not place.exists(name):
                _copy_whole(path, place.path / name)
        elif not place.exists(name):
            with place.filling() as local:
                (local / name).symlink_to(path)


def fetch_weights(storage: Place, weights: Weights) -> Weights:
    """The weights with a file that this machine reaches. Raises AskedWrongly if what is stored is gone, or another file."""
    if weights.path is None:
        return weights
    place, name = storage.within("weights"), _name(weights.digest, weights.path)
    if isinstance(place, Folder):
        return replace(weights, path=place.path / name) if place.exists(name) else weights
    return replace(weights, path=keep_file(place, name, weights.digest))


def _name(digest: str, path: Path) -> str:
    return f"{digest}{path.suffix}"


def _copy_whole(file: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    partial = goal.with_name(f".{goal.name}.new")
    shutil.copyfile(file, partial)
    partial.replace(goal)
