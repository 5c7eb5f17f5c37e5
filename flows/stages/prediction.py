"""Predictions: what a bundle reads in images, and the files that its masks are written to."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import folders, owners
from flows.errors import AskedWrongly
from flows.settings import Settings
from flows.stages.desk import open_registry

BATCH_SIZE = 32

if TYPE_CHECKING:
    from heads.bundle import Answer, Bundle


@dataclass(frozen=True)
class Readings:
    """What was read: a row an image, in order; `unread` are (file, reason) of the images of folders that do not decode."""

    rows: tuple[Mapping[str, Any], ...]
    unread: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Named:
    """The images that were asked for: each one's file, and whether it was named itself or lies in a folder that was."""

    files: tuple[tuple[Path, bool], ...]
    warnings: tuple[str, ...]


def predict(settings: Settings, model: str, files: Sequence[Path], output: Path | None = None) -> Readings:
    """What a bundle's folder, or a registered `NAME@WHICH`, reads in these images (folders stand for the images in them).

    Masks become PNG files under `output`, each image's one of its own, named after it. An image of a folder that does not
    decode is left out and told. Raises AskedWrongly where there is no such model or image, no output folder for masks, or one
    that holds such files already; ImageError where an image that was named itself does not decode. Then nothing is written.
    """
    asked = _images(files, output)
    bundle = _load(settings, model)
    masks = [head.target for head in bundle.variant.heads if head.task == "segmentation"]
    if masks and output is None:
        raise AskedWrongly(f"{model} reads masks ({', '.join(masks)}): name the folder that they are written to with --output")
    named = [file for file, is_named in asked.files if is_named]
    _check_named(named)
    images = [file for file, _ in asked.files]
    places = mask_files(images, masks, output) if output is not None and masks else [{} for _ in images]
    _refuse_taken([place for each in places for place in each.values()])
    rows: list[Mapping[str, Any]] = []
    unread: list[tuple[str, str]] = []
    for start in range(0, len(images), BATCH_SIZE):
        some = slice(start, start + BATCH_SIZE)
        for row in _read(bundle, images[some], places[some]):
            if isinstance(row, tuple):
                unread.append(row)
            else:
                rows.append(row)
    return Readings(tuple(rows), tuple(unread), asked.warnings)


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


def _refuse_taken(places: Sequence[Path]) -> None:
    taken = [place for place in places if os.path.lexists(place)]
    if taken:
        raise _taken(taken)


def _taken(places: Sequence[Path]) -> AskedWrongly:
    return AskedWrongly(
        f"{len(places)} of the masks' files are there already, e.g. {places[0]}, and are not written over; "
        "name another folder with --output, or move them away"
    )


def _load(settings: Settings, model: str) -> Bundle:
    from heads import bundle as bundles

    owners.sweep()
    with owners.scratch("predict") as made:
        folder = Path(model)
        if not folder.is_dir():
            name, at, which = model.partition("@")
            if not at:
                raise AskedWrongly(f"{model!r} is no bundle's folder; a registered model is written NAME@champion or NAME@3")
            folder = made / "bundle"
            open_registry(settings).pull(name, which or "champion", folder)
        return bundles.load(folder)


def _check_named(files: Sequence[Path]) -> None:
    """Nothing where every file that was named itself decodes; so that a fault is told before anything is written."""
    from heads.data.decoding import decode

    for file in files:
        decode(file)


def _read(
    bundle: Bundle, images: Sequence[Path], places: Sequence[Mapping[str, Path]]
) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """A row for each image, or (file, reason) where it does not decode; masks are written on the way."""
    from heads.data.decoding import decode
    from heads.errors import ImageError

    found: list[Any] = []
    for image in images:
        try:
            if image.exists() and not image.is_file():
                raise ImageError("is no regular file")
            found.append(decode(image))
        except ImageError as error:
            found.append((str(image), str(error).removeprefix(f"{image}: ")))
    answers = iter(bundle.predict([picture for picture in found if not isinstance(picture, tuple)], BATCH_SIZE))
    for image, picture, place in zip(images, found, places, strict=True):
        if isinstance(picture, tuple):
            yield picture
        else:
            yield {"file": str(image)} | {t: _told(one, place.get(t)) for t, one in next(answers).items()}


def _told(answer: Answer, file: Path | None) -> dict[str, Any]:
    from heads.bundle import Labels, Prediction

    match answer:
        case Prediction():
            return {"label": answer.label, "probability": answer.probability}
        case Labels():
            return {"labels": list(answer.labels), "probabilities": dict(answer.probabilities)}
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        answer.picture().save(new, format="PNG")
        # Linked, not renamed: what appeared there meanwhile is not written over.
        os.link(new, file)
    except FileExistsError:
        raise _taken([file]) from None
    except OSError:  # Not every file system has links.
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    return {"mask": str(file), "shares": dict(answer.shares)}


def _images(files: Sequence[Path], output: Path | None) -> _Named:
    """The images of files and folders, in order, and warnings of what was passed over in these."""
    found: list[tuple[Path, bool]] = []
    warnings = []
    for file in files:
        if not file.exists():
            raise AskedWrongly(f"{file} does not exist: name images, or folders of images")
        if not file.is_dir():
            found.append((file, True))
            continue
        inside = folders.contents(file)
        written = output is not None and output.resolve() != file.resolve()
        images = [path for path in inside.images if not (written and output and _lies_in(file / path, output))]
        if not images:
            raise AskedWrongly(f"{file} holds no image ({', '.join(folders.image_endings())})")
        found += [(file / path, False) for path in images]
        if told := folders.told([path for path in inside.files if not folders.is_image(path.name)], inside.passed):
            warnings.append(f"{file}: no images, and passed over: {told}")
    return _Named(tuple(found), tuple(warnings))


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
