"""The files that predicted masks are written to: one of its own for each image, and none that is there already."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from flows.errors import AskedWrongly


def mask_files(images: Sequence[Path], targets: Sequence[str], output: Path) -> list[dict[str, Path]]:
    """The file of each image's mask by target: `<output>/<stem>.png`, of several targets each in a folder of its own.

    No two are the same, nor differ by case alone: of images of one stem the first has it, the others have it with the first
    number that no image's stem ends in.
    """
    stems = _distinct([image.stem for image in images])
    folders_of = _distinct([_folder(target) for target in targets]) if len(targets) > 1 else [""] * len(targets)
    return [
        {target: output / folder / f"{stem}.png" for target, folder in zip(targets, folders_of, strict=True)} for stem in stems
    ]


def _folder(target: str) -> str:
    name = re.sub(r"[^\w.\- ]", "_", target)
    return name if name.strip(". ") else "_"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that stood before with a number that makes them new."""
    # Whoever has a name keeps it, though another one before him would be given it.
    taken = {_seen(name) for name in names}
    last: dict[str, int] = {}
    found = []
    for name in names:
        unique, number = name, last.get(_seen(name), 0) + 1
        while number > 1 and _seen(unique := f"{name}-{number}") in taken:
            number += 1
        last[_seen(name)] = number
        taken.add(_seen(unique))
        found.append(unique)
    return found


def _seen(name: str) -> str:
    """A name as file systems compare it that tell neither case nor composed letters apart."""
    return unicodedata.normalize("NFC", name).casefold()


def refuse_taken(places: Sequence[Path]) -> None:
    """Nothing where none of these files is there yet; raises AskedWrongly else."""
    there = [place for place in places if os.path.lexists(place)]
    if there:
        raise already_there(there)


def already_there(places: Sequence[Path]) -> AskedWrongly:
    """What is raised of files that are there already."""
    return AskedWrongly(
        f"{len(places)} of the masks' files are there already, e.g. {places[0]}, and are not written over; "
        "name another folder with --output, or move them away"
    )
