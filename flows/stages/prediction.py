"""Predictions of a bundle on images, with masks written to files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import folders, owners
from flows.errors import AskedWrongly
from flows.settings import Settings
from flows.stages.mask_files import already_there, mask_files, refuse_taken
from flows.stages.session import open_registry
from heads.catalogue import TASK_FACTS

BATCH_SIZE = 32

if TYPE_CHECKING:
    from heads.bundle import Answer, Bundle


@dataclass(frozen=True)
class ClassAnswer:
    """The predicted class, and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class LabelsAnswer:
    """The predicted set of labels, and the probability of every label."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class MaskAnswer:
    """The file of the predicted mask, and each class's share of its pixels."""

    mask: str
    shares: Mapping[str, float]


Answered = ClassAnswer | LabelsAnswer | MaskAnswer


@dataclass(frozen=True)
class Reading:
    """The predictions for one image, by target."""

    file: str
    answers: Mapping[str, Answered]


@dataclass(frozen=True)
class Unread:
    """An image of a folder that does not decode, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Readings:
    """The predictions: a row an image, in order; `unread` are the images of folders that do not decode."""

    rows: tuple[Reading, ...]
    unread: tuple[Unread, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Named:
    """The images asked for: each file, and whether it was named itself (True) or only its folder was."""

    files: tuple[tuple[Path, bool], ...]
    warnings: tuple[str, ...]


def predict(settings: Settings, model: str, files: Sequence[Path], output: Path | None = None) -> Readings:
    """Predictions of a bundle's folder, or of a registered `NAME@WHICH`, on images (a folder stands for the images in it).

    Masks become PNG files under `output`, one for each image, named after it. An image of a folder that does not decode is
    listed as unread. Raises AskedWrongly if there is no such model or image, no output folder for masks, or a mask file
    already exists; ImageError if an image that was named itself does not decode. Then nothing is written.
    """
    asked = _images(files, output)
    bundle = _load(settings, model)
    masks = [head.target for head in bundle.variant.heads if TASK_FACTS[head.task].tells == "pixels"]
    if masks and output is None:
        raise AskedWrongly(f"{model} reads masks ({', '.join(masks)}): name the folder that they are written to with --output")
    named = [file for file, is_named in asked.files if is_named]
    _check_named(named)
    images = [file for file, _ in asked.files]
    places = mask_files(images, masks, output) if output is not None and masks else [{} for _ in images]
    refuse_taken([place for of_image in places for place in of_image.values()])
    rows: list[Reading] = []
    unread: list[Unread] = []
    for start in range(0, len(images), BATCH_SIZE):
        some = slice(start, start + BATCH_SIZE)
        for row in _read(bundle, images[some], places[some]):
            if isinstance(row, Unread):
                unread.append(row)
            else:
                rows.append(row)
    return Readings(tuple(rows), tuple(unread), asked.warnings)


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
    """Raise ImageError if a file that was named itself does not decode, before anything is written."""
    from heads.data.decoding import decode

    for file in files:
        decode(file)


def _read(bundle: Bundle, images: Sequence[Path], places: Sequence[Mapping[str, Path]]) -> Iterator[Reading | Unread]:
    """For each image its predictions, or why it does not decode; masks are written on the way."""
    from heads.data.decoding import decode
    from heads.errors import ImageError

    decoded: list[Any] = []
    for image in images:
        try:
            if image.exists() and not image.is_file():
                raise ImageError("is no regular file")
            decoded.append(decode(image))
        except ImageError as error:
            decoded.append(Unread(str(image), str(error).removeprefix(f"{image}: ")))
    answers = iter(bundle.predict([pixels for pixels in decoded if not isinstance(pixels, Unread)], BATCH_SIZE))
    for image, pixels, place in zip(images, decoded, places, strict=True):
        if isinstance(pixels, Unread):
            yield pixels
        else:
            yield Reading(str(image), {target: _keep(answer, place.get(target)) for target, answer in next(answers).items()})


def _keep(answer: Answer, file: Path | None) -> Answered:
    """The bundle's answer as a value for a reading; a mask is written to `file`."""
    from heads.bundle import Labels, Prediction

    match answer:
        case Prediction():
            return ClassAnswer(answer.label, answer.probability)
        case Labels():
            return LabelsAnswer(tuple(answer.labels), dict(answer.probabilities))
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        answer.picture().save(new, format="PNG")
        # Linked, not renamed: a file that appeared there meanwhile is not overwritten.
        os.link(new, file)
    except FileExistsError:
        raise already_there([file]) from None
    except OSError:  # Not every file system has links.
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    return MaskAnswer(str(file), dict(answer.shares))


def _images(files: Sequence[Path], output: Path | None) -> _Named:
    """The images of files and folders, in order, with a warning about the files passed over in a folder."""
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
        others = [path for path in inside.files if not folders.is_image(path.name)]
        if left_out := folders.describe_left_out(others, inside.passed):
            warnings.append(f"{file}: no images, and passed over: {left_out}")
    return _Named(tuple(found), tuple(warnings))


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
