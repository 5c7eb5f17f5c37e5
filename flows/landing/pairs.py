"""Pairs of images and masks in a source, found by the names of folders and files. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from flows.landing.names import MASK_LEAD, MASK_MARK, Role, role
from flows.landing.tables import composed

_Place = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class MaskPairs:
    """The masks of a source's images; `folders` are those that hold the masks of images in another folder.

    A folder of images and one of its masks differ in one part of their paths: images and masks, train and train_masks,
    images and annotations/trimaps. There a mask has the stem of its image (x.jpg, x.png), or, if no mask of the folder has,
    that stem with a word for masks (x_mask.png) or the image's whole name (x.jpg.png).
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
        """The mask of an image, None if it has none."""
        return self._found.get(image)

    def _pair(self, folder: PurePosixPath, masks: list[PurePosixPath]) -> None:
        """Find the masks of a folder's images; if only some have a mask named by a word for masks, `halves` counts these."""
        images = self._in[folder]
        plain = [{composed(file.stem): file for file in self._in[mask]} for mask in masks]
        found = {file: mask for file in images if (mask := _first(plain, composed(file.stem)))}
        if not found:
            marked = [{_plain_stem(file): file for file in self._in[mask]} for mask in masks]
            stems = {file: mask for file in images if (mask := _first(marked, composed(file.stem)))}
            whole = {file: mask for file in images if (mask := _first(plain, composed(file.name)))}
            found = max(stems, whole, key=len)
            if len(found) < len(images):
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
    """For each folder of images the folders of its masks, the likeliest first."""
    by_place: dict[_Place, list[tuple[int, PurePosixPath]]] = {}
    everyone = list(folders)
    for folder in everyone:
        for index, said in enumerate(map(role, folder.parts)):
            if said.holds == "masks":
                for place in _places(folder, index, said):
                    by_place.setdefault(place, []).append((said.rank, folder))
    by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
    for folder in everyone:
        for index, said in enumerate(map(role, folder.parts)):
            if said.holds == "images":
                place = (folder.parts[:index], said.rest, folder.parts[index + 1 :])
                others = [mask for _, mask in sorted(by_place.get(place, ())) if mask != folder]
                if others:
                    by_folder.setdefault(folder, []).extend(others)
    return by_folder


def _places(folder: PurePosixPath, index: int, said: Role) -> list[_Place]:
    """Where the images of a folder of masks may lie: its path without the one or two parts that say masks."""
    parts = folder.parts
    places: list[_Place] = [(parts[:index], said.rest, parts[index + 1 :])]
    if index + 1 < len(parts) and role(parts[index + 1]).holds == "masks":
        places.append((parts[:index], said.rest, parts[index + 2 :]))
    return places
