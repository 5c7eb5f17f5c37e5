"""How masks lie on images that are stored turned, and which recipe reads each picture: decided for a data set as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.landing.arrivals import Arrival, count_values
from flows.landing.placing import Earlier
from flows.manifest import MASKS
from flows.records import Mask, Sample
from heads.data.decoding import decode_mask
from heads.data.recipes import AS_STORED, FIRST, MENDED, drawn_on, image_recipe, mask_recipe
from heads.errors import ImageError

_TIFF = (".tif", ".tiff")


@dataclass
class _Target:
    """What the masks of one target are drawn on, the image stored or upright, by their files."""

    stored: set[str] = field(default_factory=set)
    upright: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def note(self, file: str, told: str | None) -> None:
        """Keeps what a mask's size tells; nothing of a mask whose image has no turn."""
        if told:
            getattr(self, told).add(file)


def settle_recipes(
    samples: Sequence[Sample], masks: Mapping[str, Mask], earlier: Earlier, arrivals: Sequence[Arrival], data: Path
) -> tuple[list[Sample], dict[str, Mask], tuple[str, ...]]:
    """The samples and their masks, each with the recipe by which it is read, and warnings.

    Where sizes show of some pairs of a target that its masks are drawn on images as they are stored, and of none the
    contrary, those whose sizes tell nothing are turned as well. Otherwise these are taken as upright, with a warning.
    """
    good = {arrival.entry.image.file: arrival for arrival in arrivals if not arrival.fault}
    samples = [sample if sample.file in good else _read_anew(sample, data) for sample in samples]
    new = {file for arrival in good.values() for file in arrival.masks}
    found = {file: mask if file in new else _mask_read_anew(file, mask, data) for file, mask in masks.items()}
    warnings: list[str] = []
    for target in samples[0].labels if samples else ():
        told = _evidence(target, samples, good, data)
        kept = {file for file in told.unknown if _was_as_stored(file, found, earlier)}
        proven = told.stored or kept
        turned = (told.unknown if proven and not told.upright else kept) & found.keys()
        found.update({file: replace(found[file], recipe=AS_STORED) for file in turned})
        warnings += _turn_warnings(target, told, turned, turned - kept)
    return samples, found, (*warnings, *_shade_warnings(arrivals), *_anew_warnings(samples, found, earlier))


def _read_anew(sample: Sample, data: Path) -> Sample:
    """A sample of an earlier ingest with the recipe that it is read by today; looks at TIFFs alone."""
    if sample.recipe != FIRST or not sample.file.lower().endswith(_TIFF) or not (data / sample.file).is_file():
        return sample
    return replace(sample, recipe=image_recipe(data / sample.file))


def _mask_read_anew(file: str, mask: Mask, data: Path) -> Mask:
    if mask.recipe != FIRST or not file.lower().endswith(_TIFF) or not (data / file).is_file():
        return mask
    return mask if mask_recipe(data / file) == FIRST else Mask(mask.digest, count_values(decode_mask(data / file)), MENDED)


def _was_as_stored(file: str, found: Mapping[str, Mask], earlier: Earlier) -> bool:
    before = earlier.masks.get(file)
    return before is not None and before.as_stored and file in found and found[file].digest == before.digest


def _evidence(target: str, samples: Sequence[Sample], good: Mapping[str, Arrival], data: Path) -> _Target:
    """What the pairs of a target tell: those that arrived, and, if these tell anything, the others by their files in `data`."""
    told = _Target()
    others = []
    for sample in samples:
        cell = sample.labels[target]
        if cell is None or not cell.startswith(MASKS):
            continue
        if sample.file in good and cell in good[sample.file].masks:
            told.note(cell, good[sample.file].drawn.get(cell))
        else:
            others.append((sample.file, cell))
    if told.stored or told.upright or told.unknown:
        for image, cell in others:
            told.note(cell, _look(data / cell, data / image))
    return told


def _look(mask: Path, image: Path) -> str | None:
    try:
        return drawn_on(mask, image)
    except ImageError:
        # Gone from the folder, or damaged: an ingest of its source tells.
        return None


def _turn_warnings(target: str, told: _Target, turned: set[str], newly: set[str]) -> Iterator[str]:
    if newly:
        yield (
            f"{len(newly)} masks of {target!r}, e.g. {min(newly)}, are turned as their images are: the sizes of others show that "
            "masks are drawn on the images as these are stored"
        )
    open_ones = told.unknown - turned
    if not open_ones:
        return
    if told.stored and told.upright:
        yield (
            f"some masks of {target!r} are drawn on images as these are stored (e.g. {min(told.stored)}), others on upright ones "
            f"(e.g. {min(told.upright)}), by their sizes; {len(open_ones)} whose sizes tell nothing are taken as upright, "
            f"e.g. {min(open_ones)}. Save all images upright, without an orientation, and their masks alike"
        )
    elif not told.upright:
        yield (
            f"nothing tells whether {len(open_ones)} masks of {target!r}, e.g. {min(open_ones)}, are drawn on their images as "
            "these are stored or upright: the images have an orientation, and the masks' size fits either way. They are taken as "
            "upright; if they are not, save the images without their orientation"
        )


def _shade_warnings(arrivals: Sequence[Arrival]) -> Iterator[str]:
    shaded = sorted(file for arrival in arrivals for file in arrival.shaded)
    if shaded:
        yield (
            f"{len(shaded)} masks, e.g. {shaded[0]}, look like shades: most of their values have few pixels, at edges, "
            "as after a smooth change of size or a lossy format, and each would count as a class. Save masks as PNG, and change "
            "their size by nearest neighbour"
        )


def _anew_warnings(samples: Sequence[Sample], masks: Mapping[str, Mask], earlier: Earlier) -> Iterator[str]:
    before = {sample.file: sample for sample in earlier.samples}
    changed = [s.file for s in samples if (b := before.get(s.file)) and b.digest == s.digest and b.recipe != s.recipe]
    changed += [
        file
        for file, mask in masks.items()
        if (old := earlier.masks.get(file)) and old.digest == mask.digest and {old.recipe, mask.recipe} == {FIRST, MENDED}
    ]
    if changed:
        yield (
            f"{len(changed)} pictures, e.g. {changed[0]}, were read wrongly by an earlier version (TIFFs with an orientation, "
            "transparent greys of 16 bits, masks of few bits) and are read right now; what hangs on them is computed again"
        )
