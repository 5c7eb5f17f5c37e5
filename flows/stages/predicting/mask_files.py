"""The files that predicted masks are written to: one for each image and target, and never one that already exists."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from flows.errors import AskedWrongly


def mask_files(images: Sequence[Path], targets: Sequence[str], output: Path) -> list[dict[str, Path]]:
    """A mask file for each image and target: `<output>/<stem>.png`; several targets get a folder each.

    No two are the same, nor differ by case alone: of images with one stem the first keeps it, and the others get the stem
    with the first number that no other image has.
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
    """The names in order, repeated ones with a number that makes them unique."""
    # A name that is asked for is never handed to an earlier duplicate: a, a, a-2 give a, a-3, a-2.
    taken = {_seen(name) for name in names}
    last: dict[str, int] = {}
    unique_names = []
    for name in names:
        unique, number = name, last.get(_seen(name), 0) + 1
        while number > 1 and _seen(unique := f"{name}-{number}") in taken:
            number += 1
        last[_seen(name)] = number
        taken.add(_seen(unique))
        unique_names.append(unique)
    return unique_names


def _seen(name: str) -> str:
    """A name as a file system compares it that ignores case and Unicode composition."""
    return unicodedata.normalize("NFC", name).casefold()


def refuse_taken(places: Sequence[Path]) -> None:
    """Raise AskedWrongly if one of these files exists."""
    taken = [place for place in places if os.path.lexists(place)]
    if taken:
        raise already_there(taken)


def already_there(places: Sequence[Path]) -> AskedWrongly:
    """The error for mask files that already exist."""
    return AskedWrongly(
        f"{len(places)} of the masks' files are there already, e.g. {places[0]}, and are not written over; "
        "name another folder with --output, or move them away"
    )
