"""The first weights of works: stored below a storage root in a bucket, so that no worker has to reach the flow's disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flows.local_copies import is_copy, keep_file, keep_folder
from flows.places import Folder, Place
from flows.records import Weights
from heads.atomic_files import appearing


def store_weights(storage: Place, used: Iterable[Weights]) -> None:
    """Store the files of these weights, each once, by its digest; in a folder only copies: workers read a plan's own files."""
    place = storage.within("weights")
    files = {name: file for weights in used for name, file in _stored(weights).items()}
    for name, path in files.items():
        if isinstance(place, Folder):
            if is_copy(path) and not place.exists(name):
                _copy_whole(path, place.path / name)
        elif not place.exists(name):
            with place.filling() as local:
                (local / name).parent.mkdir(exist_ok=True)
                (local / name).symlink_to(path)


def fetch_weights(storage: Place, weights: Weights, *, in_folder: bool) -> Weights:
    """The weights with a file, or if they are `in_folder` a folder, that this machine reaches.

    Raises AskedWrongly if what is stored is gone, or is something else.
    """
    if weights.path is None:
        return weights
    place, name = storage.within("weights"), _name(weights.digest, weights.path)
    if isinstance(place, Folder):
        return replace(weights, path=place.path / name) if place.exists(name) else weights
    if in_folder:
        return replace(weights, path=keep_folder(place.within(weights.digest), weights.digest))
    return replace(weights, path=keep_file(place, name, weights.digest))


def _stored(weights: Weights) -> Mapping[str, Path]:
    """The files of weights by the names under which they are stored."""
    if weights.path is None:
        return {}
    if weights.path.is_dir():
        from heads.backbones.text_weights import files_in

        return {f"{weights.digest}/{file.name}": file for file in files_in(weights.path)}
    return {_name(weights.digest, weights.path): weights.path}


def _name(digest: str, path: Path) -> str:
    return f"{digest}{path.suffix}"


def _copy_whole(file: Path, goal: Path) -> None:
    with appearing(goal) as partial:
        shutil.copyfile(file, partial)
