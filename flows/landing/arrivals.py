"""What arrives from a source, read and decoded once; what does not decode is told apart with its reason."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from flows.landing.layouts import Entry
from heads.decoding import decode, formats
from heads.errors import ImageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Arrival:
    """An entry as it was read: the md5 of its image, whether a file of it is new or changed, and its fault if it has one."""

    entry: Entry
    digest: str
    changed: bool
    fault: str | None = None


def receive(
    entries: Sequence[Entry], data: Path, incoming: Path, known: Mapping[str, str], on_progress: Progress | None
) -> list[Arrival]:
    """An arrival for every entry, in order; files that `data` lacks lie under `incoming` by their name in the data folder.

    `known` gives the digest by file of images decoded before: they are not decoded again.
    """
    arrivals = []
    digests = frozenset(known.values())
    with warnings.catch_warnings(), ThreadPoolExecutor(max(2, cpu_count() or 2)) as pool:
        warnings.simplefilter("ignore")
        for arrival in pool.map(lambda entry: _receive(entry, data, incoming, known, digests), entries):
            arrivals.append(arrival)
            if on_progress:
                on_progress(len(arrivals), len(entries))
    return arrivals


def _receive(entry: Entry, data: Path, incoming: Path, known: Mapping[str, str], digests: frozenset[str]) -> Arrival:
    if entry.fault:
        return Arrival(entry, "", False, entry.fault)
    digest = ""
    try:
        entry.image.file.encode()
        image = entry.image.read()
        digest = hashlib.md5(image, usedforsecurity=False).hexdigest()
        masks = [(picture, picture.read()) for picture in entry.masks.values() if picture]
        new = known.get(entry.image.file) != digest
        stale = [(picture, content) for picture, content in masks if not _is_there(data / picture.file, content)]
        if digest not in digests or stale or (new and masks):
            _check(image, [content for _, content in masks])
    # A damaged file makes decoders raise nearly anything; whatever it is, it costs this one image only.
    except Exception as error:
        return Arrival(entry, digest, False, _reason(error))
    if not _is_there(data / entry.image.file, image):
        stale.append((entry.image, image))
    for picture, content in stale:
        _write(incoming / picture.file, content)
    return Arrival(entry, digest, new or bool(stale))


def _reason(error: Exception) -> str:
    """The fault in words that are the same at every run, without addresses in memory or folders."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not valid UTF-8"
    if isinstance(error, ImageError):
        return str(error).removeprefix("image: ")
    if isinstance(error, UnidentifiedImageError):
        return "its mask is no image in a format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check(image: bytes, masks: Sequence[bytes]) -> None:
    # What training does with it, so that what passes here does not fail there.
    size = decode(image, "image").size
    for content in masks:
        with Image.open(io.BytesIO(image), formats=formats()) as opened:
            stored = opened.size
        with Image.open(io.BytesIO(content), formats=formats()) as mask:
            mask.load()
            bands = len(mask.getbands())
            if bands != 1:
                raise ValueError(f"its mask has {bands} channels; a mask has one, whose value is the class")
            if mask.size not in (size, stored):
                raise ValueError(f"its mask is {mask.size[0]}x{mask.size[1]} px, the image {stored[0]}x{stored[1]} px")


def _is_there(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
