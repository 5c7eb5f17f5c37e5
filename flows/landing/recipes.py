"""The recipe by which each image and mask is read; whether masks are turned with their images is decided by target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.landing.arrivals import Arrival, count_values
from flows.landing.earlier import Earlier
from flows.manifest import MASKS, mask_files
from flows.records import Mask, Sample
from heads.data.decoding import decode_mask
from heads.data.recipes import AS_STORED, FIRST, MENDED, drawn_on, image_recipe, mask_recipe
from heads.errors import ImageError

_TIFF = (".tif", ".tiff")


@dataclass
class _Target:
    """The mask files of one target, by what their size shows: drawn on the image as stored, on it upright, or either."""

    stored: set[str] = field(default_factory=set)
    upright: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def note(self, file: str, drawn: str | None) -> None:
        """Note what a mask is drawn on ('stored', 'upright' or 'unknown'); None, if its image has no orientation, is left out."""
        if drawn:
            getattr(self, drawn).add(file)


def settle_recipes(
    samples: Sequence[Sample], earlier: Earlier, arrivals: Sequence[Arrival], data: Path
) -> tuple[list[Sample], dict[str, Mask], tuple[str, ...]]:
    """The samples and their masks, each with the recipe by which it is read, and warnings.

    If the sizes of some pairs of a target show that its masks are drawn on images as stored, and no pair shows the contrary,
    the masks whose sizes show nothing are turned, too. Otherwise these are taken as upright, with a warning.
    """
    good = {arrival.entry.file: arrival for arrival in arrivals if not arrival.fault}
    samples = [sample if sample.file in good else _read_anew(sample, data) for sample in samples]
    new = {file for arrival in good.values() for file in arrival.masks}
    masks = _known_masks(samples, earlier, arrivals)
    settled = {file: mask if file in new else _mask_read_anew(file, mask, data) for file, mask in masks.items()}
    warnings: list[str] = []
    for target in samples[0].labels if samples else ():
        evidence = _evidence(target, samples, good, data)
        kept = {file for file in evidence.unknown if _was_as_stored(file, settled, earlier)}
        proven = evidence.stored or kept
        turned = (evidence.unknown if proven and not evidence.upright else kept) & settled.keys()
        settled.update({file: replace(settled[file], recipe=AS_STORED) for file in turned})
        warnings += _turn_warnings(target, evidence, turned, turned - kept)
    return samples, settled, (*warnings, *_shade_warnings(arrivals), *_anew_warnings(samples, settled, earlier))


def _known_masks(samples: Sequence[Sample], earlier: Earlier, arrivals: Sequence[Arrival]) -> dict[str, Mask]:
    """The masks that samples name and that this ingest or an earlier one has read, by file name."""
    known = dict(earlier.masks)
    for arrival in arrivals:
        known |= arrival.masks
    return {file: known[file] for file in mask_files(samples) if file in known}


def _read_anew(sample: Sample, data: Path) -> Sample:
    """A sample of an earlier ingest with the recipe by which it is read today; opens only TIFFs, whose reading changed."""
    if sample.recipe != FIRST or not sample.file.lower().endswith(_TIFF) or not (data / sample.file).is_file():
        return sample
    return replace(sample, recipe=image_recipe(data / sample.file))


def _mask_read_anew(file: str, mask: Mask, data: Path) -> Mask:
    if mask.recipe != FIRST or not file.lower().endswith(_TIFF) or not (data / file).is_file():
        return mask
    return mask if mask_recipe(data / file) == FIRST else Mask(mask.digest, count_values(decode_mask(data / file)), MENDED)


def _was_as_stored(file: str, masks: Mapping[str, Mask], earlier: Earlier) -> bool:
    before = earlier.masks.get(file)
    return before is not None and before.as_stored and file in masks and masks[file].digest == before.digest


def _evidence(target: str, samples: Sequence[Sample], good: Mapping[str, Arrival], data: Path) -> _Target:
    """The evidence of a target's pairs: those that arrived, and, if these show anything, the others by their files in `data`."""
    evidence = _Target()
    others = []
    for sample in samples:
        cell = sample.labels[target]
        if cell is None or not cell.startswith(MASKS):
            continue
        if sample.file in good and cell in good[sample.file].masks:
            evidence.note(cell, good[sample.file].drawn.get(cell))
        else:
            others.append((sample.file, cell))
    if evidence.stored or evidence.upright or evidence.unknown:
        for image, cell in others:
            evidence.note(cell, _look(data / cell, data / image))
    return evidence


def _look(mask: Path, image: Path) -> str | None:
    try:
        return drawn_on(mask, image)
    except ImageError:
        # Missing or damaged: the next ingest of its source reports it.
        return None


def _turn_warnings(target: str, evidence: _Target, turned: set[str], newly: set[str]) -> Iterator[str]:
    if newly:
        yield (
            f"{len(newly)} masks of {target!r}, e.g. {min(newly)}, are turned as their images are: the sizes of others show that "
            "masks are drawn on the images as these are stored"
        )
    open_ones = evidence.unknown - turned
    if not open_ones:
        return
    if evidence.stored and evidence.upright:
        yield (
            f"some masks of {target!r} are drawn on images as these are stored (e.g. {min(evidence.stored)}), others on upright "
            f"ones (e.g. {min(evidence.upright)}), by their sizes; {len(open_ones)} whose sizes tell nothing are taken as "
            f"upright, e.g. {min(open_ones)}. Save all images upright, without an orientation, and their masks alike"
        )
    elif not evidence.upright:
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
    changed = [s.file for s in samples if (b := earlier.by_file.get(s.file)) and b.digest == s.digest and b.recipe != s.recipe]
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
