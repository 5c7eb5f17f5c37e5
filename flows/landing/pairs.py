"""Which picture of a source has which mask, by the names of folders and files. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from flows.landing.names import MASK_LEAD, MASK_MARK, Role, role
from flows.landing.tables import composed

_Place = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class Masks:
    """The mask of a picture, or None; `folders` are those that hold masks of pictures in another folder.

    A folder of pictures and one of masks differ in one part of their paths: images and masks, train and train_masks,
    images and annotations/trimaps. There a mask has the stem of its picture (x.jpg, x.png), and only where none has, that stem
    with a word for masks (x_mask.png) or the picture's whole name (x.jpg.png).
    """

    def __init__(self, images: Iterable[PurePosixPath]) -> None:
        self._in: dict[PurePosixPath, list[PurePosixPath]] = {}
        for file in images:
            self._in.setdefault(file.parent, []).append(file)
        self._of_folder = _folders_of_masks(self._in)
        self.folders = frozenset(mask for masks in self._of_folder.values() for mask in masks)
        self._found: dict[PurePosixPath, PurePosixPath] = {}
        self.halves: dict[PurePosixPath, int] = {}
        for folder, masks in self._of_folder.items():
            if folder not in self.folders:
                self._pair(folder, masks)

    def of(self, image: PurePosixPath) -> PurePosixPath | None:
        """The mask of a picture."""
        return self._found.get(image)

    def _pair(self, folder: PurePosixPath, masks: list[PurePosixPath]) -> None:
        """Find the masks of a folder's pictures; `halves` counts those where some names, but not all, have a word for masks."""
        pictures = self._in[folder]
        plain = [{composed(file.stem): file for file in self._in[mask]} for mask in masks]
        found = {file: mask for file in pictures if (mask := _first(plain, composed(file.stem)))}
        if not found:
            marked = [{_plain_stem(file): file for file in self._in[mask]} for mask in masks]
            stems = {file: mask for file in pictures if (mask := _first(marked, composed(file.stem)))}
            whole = {file: mask for file in pictures if (mask := _first(plain, composed(file.name)))}
            found = max(stems, whole, key=len)
            if len(found) < len(pictures):
                self.halves |= {folder: len(found)} if found else {}
                return
        self._found |= found


def _first(places: Iterable[dict[str, PurePosixPath]], name: str) -> PurePosixPath | None:
    return next((place[name] for place in places if name in place), None)


def _plain_stem(mask: PurePosixPath) -> str:
    stem = composed(mask.stem)
    found = MASK_MARK.match(stem) or MASK_LEAD.match(stem)
    return found["stem"] if found else stem


def _folders_of_masks(folders: Iterable[PurePosixPath]) -> dict[PurePosixPath, list[PurePosixPath]]:
    """For each folder of pictures the folders of its masks, the likeliest first."""
    by_place: dict[_Place, list[tuple[int, PurePosixPath]]] = {}
    everyone = list(folders)
    for folder in everyone:
        for index, said in enumerate(map(role, folder.parts)):
            if said.holds == "masks":
                for place in _places(folder, index, said):
                    by_place.setdefault(place, []).append((said.rank, folder))
    found: dict[PurePosixPath, list[PurePosixPath]] = {}
    for folder in everyone:
        for index, said in enumerate(map(role, folder.parts)):
            if said.holds == "pictures":
                place = (folder.parts[:index], said.rest, folder.parts[index + 1 :])
                others = [mask for _, mask in sorted(by_place.get(place, ())) if mask != folder]
                if others:
                    found.setdefault(folder, []).extend(others)
    return found


def _places(folder: PurePosixPath, index: int, said: Role) -> list[_Place]:
    """Where the pictures of a folder of masks may lie: the path without the part that says masks, or the two that do."""
    parts = folder.parts
    places: list[_Place] = [(parts[:index], said.rest, parts[index + 1 :])]
    if index + 1 < len(parts) and role(parts[index + 1]).holds == "masks":
        places.append((parts[:index], said.rest, parts[index + 2 :]))
    return places
