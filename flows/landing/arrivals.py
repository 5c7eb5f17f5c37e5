"""Reading a source's files: each is read and decoded once, and gets a fault, in words, if it does not decode."""

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

from flows.landing.earlier import Earlier
from flows.landing.entries import MASK, Entry
from flows.manifest import mask_files
from flows.records import Mask
from heads.data.decoding import decode_mask
from heads.data.mask_values import is_shaded
from heads.data.recipes import FIRST, drawn_on, mask_recipe
from heads.errors import ImageError, TextError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Arrival:
    """An entry after reading: the md5 of its content, whether a file of it is new or changed, and its fault if it has one.

    `recipe` is that of its content. `masks` are its masks by file name, empty if it has a fault. `drawn` says, for masks whose
    image has an orientation, whether they are drawn on the image as 'stored', 'upright' or 'unknown'. `shaded` are new masks
    whose values look like shades.
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
    """A mask after reading, and whether its values look like shades; False for a mask that was checked before."""

    mask: Mask
    is_shaded: bool = False


def receive(
    entries: Sequence[Entry], data: Path, incoming: Path, earlier: Earlier, on_progress: Progress | None
) -> list[Arrival]:
    """Read all entries, in order; files that `data` lacks are written to `incoming`, under their names in the data folder.

    Files with the bytes that an earlier ingest has read are not decoded again.
    """
    arrivals = []
    digests = frozenset(sample.digest for sample in earlier.samples)
    with warnings.catch_warnings(), ThreadPoolExecutor(max(2, cpu_count() or 2)) as pool:
        warnings.simplefilter("ignore")
        for arrival in pool.map(lambda entry: _receive(entry, data, incoming, earlier, digests), entries):
            arrivals.append(arrival)
            if on_progress:
                on_progress(len(arrivals), len(entries))
    return arrivals


def _receive(entry: Entry, data: Path, incoming: Path, earlier: Earlier, digests: frozenset[str]) -> Arrival:
    if entry.fault:
        return Arrival(entry, "", False, entry.fault)
    digest = ""
    try:
        entry.file.encode()
        if any(len(text.splitlines()) > 1 for text in (entry.file, *filter(None, entry.labels.values()))):
            raise ImageError("its name or label holds a line break")
        content = entry.source.read()
        digest = _md5(content)
        recipe = entry.source.recipe(content) if digest in digests else entry.source.decode(content)
        before = earlier.by_file.get(entry.file)
        new = before is None or before.digest != digest
        mask_of = {target: mask for target, mask in entry.masks.items() if mask}
        contents = {mask: mask.read() for mask in mask_of.values()}
        # A mask was checked against the image that named it, and against no other.
        cells = () if new or before is None else mask_files([before])
        checked = {file: earlier.masks[file] for file in cells if file in earlier.masks}
        masks = {
            mask.file: _mask(contents[mask], content, checked.get(mask.file), _mask_title(target))
            for target, mask in mask_of.items()
        }
        drawn = {mask.file: drawn_on(mask_content, content) for mask, mask_content in contents.items()}
    # A damaged file makes decoders raise nearly anything; it must cost this one sample only.
    except Exception as error:
        return Arrival(entry, digest, False, _reason(error))
    read = {**contents, entry.source: content}
    stale = {file: kept for file, kept in read.items() if not _is_there(data / file.file, kept)}
    for file, kept in stale.items():
        _write(incoming / file.file, kept)
    return Arrival(
        entry,
        digest,
        new or bool(stale),
        masks={file: one.mask for file, one in masks.items()},
        recipe=recipe,
        drawn={name: how for name, how in drawn.items() if how},
        shaded=frozenset(file for file, one in masks.items() if one.is_shaded),
    )


def _reason(error: Exception) -> str:
    """The fault in words that are the same in every run: without memory addresses or folders."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not valid UTF-8"
    if isinstance(error, ImageError):
        return str(error).removeprefix("image: ")
    if isinstance(error, TextError):
        return str(error).removeprefix("text: ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _mask_title(target: str) -> str:
    """The mask's name for a fault; a column of image files is taken for masks even if its name does not say so."""
    return "its mask" if target == MASK else f"its {target!r}, a column taken for masks since its cells name images of the source"


def _mask(content: bytes, image: bytes, checked: Mask | None, title: str) -> _Read:
    """A mask with its pixels by value: from `checked` if bytes are the same and its recipe is no older, else decoded."""
    digest, recipe = _md5(content), mask_recipe(content, image)
    if checked and checked.digest == digest and checked.recipe >= recipe:
        return _Read(replace(checked, recipe=recipe))
    decoded = decode_mask(content, image, title)
    return _Read(Mask(digest, count_values(decoded), recipe), is_shaded(decoded))


def count_values(values: NDArray[np.int32]) -> dict[int, int]:
    """The number of pixels of a mask by their value."""
    distinct, counts = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), counts.tolist(), strict=True))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _is_there(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
