"""What arrives from a source, read and decoded once; what does not decode is told apart with its reason."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import cpu_count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.landing.entries import MASK, Entry
from flows.manifest import mask_files
from flows.records import Mask, Sample
from heads.data.decoding import decode, decode_mask
from heads.data.mask_values import is_shaded
from heads.data.recipes import FIRST, drawn_on, image_recipe, mask_recipe
from heads.errors import ImageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Known:
    """What earlier ingests decoded, samples and masks by file: bytes that are as they were are not decoded again."""

    samples: Mapping[str, Sample]
    masks: Mapping[str, Mask]


@dataclass(frozen=True)
class Arrival:
    """An entry as it was read: the md5 of its image, whether a file of it is new or changed, and its fault if it has one.

    `recipe` is that of its image. `masks` are its mask files by name, where it has no fault; `drawn` tells of each whose image
    has an orientation what it is drawn on, the image 'stored' or 'upright', or 'unknown'; `shaded` are new ones whose values
    look like shades.
    """

    entry: Entry
    digest: str
    changed: bool
    fault: str | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)
    recipe: int = FIRST
    drawn: Mapping[str, str] = field(default_factory=dict)
    shaded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Read:
    """A mask that was read, and whether its values look like shades; of one that was checked before, that is not asked."""

    mask: Mask
    is_shaded: bool = False


def receive(entries: Sequence[Entry], data: Path, incoming: Path, known: Known, on_progress: Progress | None) -> list[Arrival]:
    """An arrival for every entry, in order; files that `data` lacks lie under `incoming` by their name in the data folder."""
    arrivals = []
    digests = frozenset(sample.digest for sample in known.samples.values())
    with warnings.catch_warnings(), ThreadPoolExecutor(max(2, cpu_count() or 2)) as pool:
        warnings.simplefilter("ignore")
        for arrival in pool.map(lambda entry: _receive(entry, data, incoming, known, digests), entries):
            arrivals.append(arrival)
            if on_progress:
                on_progress(len(arrivals), len(entries))
    return arrivals


def _receive(entry: Entry, data: Path, incoming: Path, known: Known, digests: frozenset[str]) -> Arrival:
    if entry.fault:
        return Arrival(entry, "", False, entry.fault)
    digest = ""
    try:
        entry.image.file.encode()
        if any(len(text.splitlines()) > 1 for text in (entry.image.file, *filter(None, entry.labels.values()))):
            raise ImageError("its name or label holds a line break")
        image = entry.image.read()
        digest = _md5(image)
        if digest not in digests:
            # What training does with it, so that what passes here does not fail there.
            decode(image, "image")
        before = known.samples.get(entry.image.file)
        new = before is None or before.digest != digest
        pictures = {target: picture for target, picture in entry.masks.items() if picture}
        contents = {picture: picture.read() for picture in pictures.values()}
        # A mask was checked beside the image that named it, and beside no other.
        cells = () if new or before is None else mask_files([before])
        checked = {file: known.masks[file] for file in cells if file in known.masks}
        masks = {
            picture.file: _mask(contents[picture], image, checked.get(picture.file), _mask_title(target))
            for target, picture in pictures.items()
        }
        drawn = {picture.file: drawn_on(content, image) for picture, content in contents.items()}
    # A damaged file makes decoders raise nearly anything; whatever it is, it costs this one image only.
    except Exception as error:
        return Arrival(entry, digest, False, _reason(error))
    stale = {p: content for p, content in {**contents, entry.image: image}.items() if not _is_there(data / p.file, content)}
    for picture, content in stale.items():
        _write(incoming / picture.file, content)
    return Arrival(
        entry,
        digest,
        new or bool(stale),
        masks={file: read.mask for file, read in masks.items()},
        recipe=image_recipe(image),
        drawn={file: told for file, told in drawn.items() if told},
        shaded=frozenset(file for file, read in masks.items() if read.is_shaded),
    )


def _reason(error: Exception) -> str:
    """The fault in words that are the same at every run, without addresses in memory or folders."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not valid UTF-8"
    if isinstance(error, ImageError):
        return str(error).removeprefix("image: ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _mask_title(target: str) -> str:
    """What a mask is called where it is at fault; a column of pictures is taken for masks, which its name may not tell."""
    return "its mask" if target == MASK else f"its {target!r}, a column taken for masks since its cells name images of the source"


def _mask(content: bytes, image: bytes, checked: Mask | None, title: str) -> _Read:
    """A mask with the pixels of each value: `checked` where that is it and read as before, else decoded beside its image."""
    digest, recipe = _md5(content), mask_recipe(content, image)
    if checked and checked.digest == digest and checked.recipe >= recipe:
        return _Read(replace(checked, recipe=recipe))
    decoded = decode_mask(content, image, title)
    return _Read(Mask(digest, count_values(decoded), recipe), is_shaded(decoded))


def count_values(values: NDArray[np.int32]) -> dict[int, int]:
    """How many pixels of a mask have each value."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _is_there(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
