"""Refuses folders that lie where classes are expected but are splits, images in general or masks, by name and some pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.image_kinds import Glance, are_mostly
from flows.landing.names import MASK_MARK, is_images_in_general, is_masks_in_general, role, speaks_of_masks, splits_among
from flows.words import first_of

_REMEDY = "If these are classes all the same, name the labels in a table labels.csv (columns {} and label). Nothing was changed"
# Among so many class folders none holds the masks of another, and comparing each with each takes long.
_MANY = 20
Classes = Mapping[str, Sequence[PurePosixPath]]


def refuse_no_classes(root: Path, classes: Classes) -> None:
    """Raise AskedWrongly if one of the folders, given with their images, is no class but a split, images in general or masks."""
    refuse_splits(root, classes)
    general = [name for name in classes if is_images_in_general(name)]
    masks = [name for name in classes if is_masks_in_general(name)]
    if general or masks:
        beside = [name for name in classes if name not in (*general, *masks) and role(name).holds == "masks"]
        raise AskedWrongly(
            f"{_named(root, [*general, *masks, *beside])}, named as pictures in general or masks are and not as a class. For "
            "masks give each picture one of the same stem: images/x.jpg and masks/x.png, or for every picture x_mask.png or "
            f"x.jpg.png. {_REMEDY.format('file')}"
        )
    _refuse_masks(root, classes)
    _refuse_masks_within(root, classes)


def refuse_splits(root: Path, classes: Iterable[str], ending: str = ".jpg", column: str = "file") -> None:
    """Raise AskedWrongly if one of the folders, given by name, is no class but a split.

    `ending` is that of their files, and `column` that of a table which could hold them.
    """
    splits = list(splits_among(classes))
    if splits:
        raise AskedWrongly(
            f"{_named(root, splits)}, named as splits are, which would be learnt as classes. For splits put class folders into "
            f"each (train/cat/*{ending}), and take out what has no label. {_REMEDY.format(column)}"
        )


def _named(root: Path, names: Sequence[str]) -> str:
    shown = first_of([repr(name) for name in names], 5)
    return f"source {str(root)!r} has the folder{'s' if len(names) > 1 else ''} {shown}"


def _refuse_masks(root: Path, classes: Classes) -> None:
    """Refuse a folder whose images look like masks, if its name says masks or its files are named after another folder's."""
    for name in classes:
        if _holds_masks(root, name, classes):
            raise AskedWrongly(
                f"{_named(root, [name])}, which holds masks: its pictures have a few flat values, and those beside it have not. "
                "Put pictures into images/ and their masks into masks/, of the same stem each, or name both in a table "
                f"labels.csv (columns file and mask). {_REMEDY.format('file')}"
            )


def _holds_masks(root: Path, name: str, classes: Classes) -> bool:
    others = [other for other in classes if other != name]
    if speaks_of_masks(name):
        return _are(root, classes[name], _flat) and any(_are(root, classes[other], _not_flat) for other in others)
    if len(classes) > _MANY:
        return False
    paired = [other for other in others if _are_named_after(classes[name], classes[other])]
    return bool(paired) and _are(root, classes[name], _mask) and any(_are(root, classes[other], _photograph) for other in paired)


def _are(root: Path, files: Sequence[PurePosixPath], kind: Callable[[Glance], bool]) -> bool:
    return are_mostly([root / file for file in files], kind)


def _refuse_masks_within(root: Path, classes: Classes) -> None:
    """Refuse a class folder in which images lie beside their own masks: x.png and x_mask.png."""
    for name, files in classes.items():
        stems = {file.stem for file in files}
        masks = [file for file in files if (mark := MASK_MARK.match(file.stem)) and mark["stem"] in stems]
        images = sorted({*files} - {*masks})
        if not masks or 2 * len(masks) < len(images):
            continue
        if _are(root, masks, _flat) and _are(root, images, _not_flat):
            raise AskedWrongly(
                f"source {str(root)!r}: in the folder {name!r} {len(masks)} masks lie beside their pictures, e.g. {masks[0]}, "
                "and would be learnt as pictures of that class. Put pictures into images/ and masks into masks/, or name both in "
                "a table labels.csv (columns file, label and mask). Nothing was changed"
            )


def _flat(glance: Glance) -> bool:
    return glance.is_flat


def _not_flat(glance: Glance) -> bool:
    return not glance.is_flat


def _mask(glance: Glance) -> bool:
    return glance.is_mask


def _photograph(glance: Glance) -> bool:
    return glance.is_photograph


def _are_named_after(files: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> bool:
    """Whether nearly every file has the stem of an image, or that with a suffix."""
    stems = {name for image in images for name in (image.stem, image.name)}
    named = [file for file in files if file.stem in stems or _cut(file.stem) in stems]
    return 10 * len(named) >= 9 * len(files)


def _cut(stem: str) -> str:
    mark = MASK_MARK.match(stem)
    return mark["stem"] if mark else stem.rpartition("_")[0] or stem.rpartition("-")[0]
