"""Predictions of a bundle on images, with masks written to files, or on texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows import temporary_folders
from flows.errors import AskedWrongly
from flows.settings import Settings
from flows.stages.predicting.asked import Asked, Unread
from flows.stages.predicting.asked_images import find_images
from flows.stages.predicting.asked_texts import find_texts
from flows.stages.predicting.mask_files import already_there, mask_files, refuse_taken
from flows.stages.predicting.readings import Answered, ClassAnswer, LabelsAnswer, MaskAnswer, Reading, Readings, TagsAnswer
from flows.stages.session import open_registry
from flows.words import counted
from heads.catalogue import TASK_FACTS

BATCH_SIZE = 32
# Decoded, an image takes three bytes a pixel.
MAX_BATCH_PIXELS = 50_000_000

if TYPE_CHECKING:
    from PIL.Image import Image

    from heads.bundle import Answer, Bundle


def predict(
    settings: Settings,
    model: str,
    files: Sequence[Path],
    output: Path | None = None,
    *,
    texts: Sequence[str] = (),
    column: str | None = None,
    without_masks: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Readings:
    """Predictions of a bundle's folder, or of a registered `NAME@WHICH`, on images or, if it reads them, on texts.

    `texts` are texts as they are; files of texts are read as `find_texts` says. Of images, a folder stands for the images in it,
    a CSV file for those that its `column` names (left out: `file`, or the only one).
    Masks become PNG files under `output`, one for each image, named after it; without it, a model that tells more than masks may
    be asked for answers `without_masks`. An image of a folder or a CSV that does not decode
    is listed as unread. `progress` is told how many of how many samples are done. Raises AskedWrongly if there is no such model,
    file or column, no output folder for masks, or a mask file already exists; ImageError if an image that was named itself does
    not decode. Then nothing is written.
    """
    if not files and not texts:
        raise AskedWrongly("nothing is asked for: name files, or give a text with --text")
    if missing := [file for file in files if not file.exists()]:
        raise AskedWrongly(f"{missing[0]} does not exist: name files, folders of them, or CSV files")
    bundle = _load(settings, model)
    if bundle.variant.modality == "text":
        return _read_texts(bundle, find_texts(texts, files, column), progress)
    if texts:
        raise AskedWrongly(f"{model} reads images, and was given {counted(len(texts), 'text')} with --text; name files of images")
    asked = find_images(files, output, column)
    masks = [head.target for head in bundle.variant.heads if TASK_FACTS[head.task].tells == "pixels"]
    warnings = asked.warnings
    if masks and output is None:
        others = len(masks) < len(bundle.variant.heads)
        if not (others and without_masks):
            rest = ", or ask for the other answers alone with --csv FILE or --json" if others else ""
            raise AskedWrongly(
                f"{model} reads masks ({', '.join(masks)}): name the folder that they are written to with --output FOLDER{rest}"
            )
        warnings += (f"masks ({', '.join(masks)}) are not written: name a folder for them with --output FOLDER",)
    images = [Path(image.content) for image in asked.samples]
    _check_named([file for file, image in zip(images, asked.samples, strict=True) if image.is_named])
    places = mask_files(images, masks, output) if output is not None and masks else [{} for _ in images]
    refuse_taken([place for of_image in places for place in of_image.values()])
    read, told = _read(bundle, images, places), list[Reading | Unread]()
    progress(0, len(asked.found))
    for each in asked.found:
        told.append(each if isinstance(each, Unread) else next(read))
        progress(len(told), len(asked.found))
    return Readings(tuple(told), warnings)


def _read_texts(bundle: Bundle, asked: Asked, progress: Callable[[int, int], None]) -> Readings:
    """The predictions for texts. Raises TextError if one cannot be read that was named itself."""
    from heads.bundle import predict_together
    from heads.data.text_preprocess import compose, decode_text
    from heads.errors import TextError

    told: dict[int, Reading | Unread] = {}
    opened: list[tuple[int, str, str]] = []
    for place, text in enumerate(asked.found):
        if isinstance(text, Unread):
            told[place] = text
            continue
        try:
            content, name = text.content, text.name if isinstance(text.content, Path) or not text.is_named else "the text"
            letters = compose(content, name) if isinstance(content, str) else decode_text(content)
            opened.append((place, text.name, letters))
        except TextError as error:
            if text.is_named:
                raise
            told[place] = Unread(text.name, str(error).removeprefix(f"{text.name}: "))
    progress(len(told), len(asked.found))
    for numbers, (answers,) in predict_together([bundle], (letters for *_, letters in opened), BATCH_SIZE):
        for (place, name, _), answer in zip([opened[number] for number in numbers], answers, strict=True):
            told[place] = Reading(name, {target: _keep(one, None) for target, one in answer.items()})
        progress(len(told), len(asked.found))
    return Readings(tuple(told[place] for place in range(len(asked.found))), asked.warnings)


def _load(settings: Settings, model: str) -> Bundle:
    from heads import bundle as bundles

    temporary_folders.sweep()
    with temporary_folders.scratch("predict") as made:
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
    """For each image its predictions, or why it does not decode; masks are written on the way.

    Images are held in memory a batch at a time: up to BATCH_SIZE, and fewer if they are large.
    """
    batch: list[tuple[Path, Mapping[str, Path], Image | Unread]] = []
    num_pixels = 0
    for image, place in zip(images, places, strict=True):
        found = _decode(image)
        batch.append((image, place, found))
        num_pixels += 0 if isinstance(found, Unread) else found.width * found.height
        if len(batch) == BATCH_SIZE or num_pixels >= MAX_BATCH_PIXELS:
            yield from _read_batch(bundle, batch)
            batch, num_pixels = [], 0
    yield from _read_batch(bundle, batch)


def _decode(image: Path) -> Image | Unread:
    from heads.data.decoding import decode
    from heads.errors import ImageError

    try:
        if image.exists() and not image.is_file():
            raise ImageError("is no regular file")
        return decode(image)
    except ImageError as error:
        return Unread(str(image), str(error).removeprefix(f"{image}: "))


def _read_batch(bundle: Bundle, batch: Sequence[tuple[Path, Mapping[str, Path], Image | Unread]]) -> Iterator[Reading | Unread]:
    answers = iter(bundle.predict([found for _, _, found in batch if not isinstance(found, Unread)], BATCH_SIZE))
    for image, place, found in batch:
        if isinstance(found, Unread):
            yield found
        else:
            yield Reading(str(image), {target: _keep(answer, place.get(target)) for target, answer in next(answers).items()})


def _keep(answer: Answer, file: Path | None) -> Answered:
    """The bundle's answer as a value for a reading; a mask is written to `file`, if one is given."""
    from heads.bundle import Labels, Prediction, TagsPrediction

    match answer:
        case Prediction():
            return ClassAnswer(answer.label, answer.probability)
        case Labels():
            return LabelsAnswer(tuple(answer.labels), dict(answer.probabilities))
        case TagsPrediction():
            return TagsAnswer(answer.words, answer.tags, answer.spans)
    if file is None:
        return MaskAnswer(None, dict(answer.shares))
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        answer.picture().save(new, format="PNG")
        _name(new, file)
    finally:
        new.unlink(missing_ok=True)
    return MaskAnswer(str(file), dict(answer.shares))


def _name(new: Path, file: Path) -> None:
    """Give a written file its name. Raises AskedWrongly if another has it by now."""
    try:
        # Linked, not renamed: a file that appeared there meanwhile is not overwritten.
        os.link(new, file)
    except FileExistsError:
        raise already_there([file]) from None
    except OSError:  # Not every file system has links.
        new.replace(file)
