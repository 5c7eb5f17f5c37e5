"""What folders of public data sets mean by their names: splits, pictures in general, masks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

# The spellings that folders and the column `split` of a table may have; eval is a test, as in Hugging Face's data sets.
SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Splits, but which of ours they are nobody can say.
UNCLEAR_SPLIT_NAMES = ("holdout", "unlabelled", "unlabeled", "submission")
# Words that say nothing but that pictures lie there.
_PICTURES_IN_GENERAL = frozenset({"images", "image", "imgs", "img"})
_FILLERS = _PICTURES_IN_GENERAL.union(
    ("set", "sets", "data", "dataset", "split", "pictures", "photos", "raw", "full", "all", "new")
)
# The earlier a word, the sooner a folder of that name is taken for the masks.
MASK_WORDS = (
    *("masks", "mask", "annotations", "annot", "labels", "label", "annotation", "annots", "anno", "groundtruth", "gt", "gts"),
    *("segmentation", "segmentations", "trimaps", "trimap", "seg", "segs", "manual", "targets", "target", "outputs", "output"),
    *("labelled", "labeled", "instances"),
)
_PICTURE_WORDS = _PICTURES_IN_GENERAL.union(
    ("inputs", "input", "photos", "photo", "pictures", "picture", "originals", "original", "rgb")
)
_PARTS = frozenset({"part", "subset", "fold", "tr", "ts"})
# And words that say nothing but that masks do.
_MASKS_IN_GENERAL = frozenset({"annotations", "annot", "annots", "groundtruth", "segmentation", "segmentations", "trimaps"})
_PHRASES = {
    "ground truth": "groundtruth",
    "ground truths": "groundtruth",
    "gt fine": "groundtruth",
    "gt coarse": "groundtruth",
    "left img bit": "images",
    "jpeg images": "images",
    "segmentation class": "segmentation",
    "segmentation object": "instances",
    "label ids": "labels",
    "st manual": "manual",
    "nd manual": "manual",
    "train val": "trainval",
    "hold out": "holdout",
}
# What data sets put behind a picture's stem, or before it, to name its mask.
_SUFFIXES = (*MASK_WORDS[:-1], "labelids", "l", "m", "matte", "segmented", "segmap", "ground_truth", "gtfine_labelids", "manual1")
_ANY_SUFFIX = "|".join(sorted(map(re.escape, _SUFFIXES), key=len, reverse=True))
MASK_MARK = re.compile(rf"^(?P<stem>.+?)[ _.\-]+({_ANY_SUFFIX})$", re.IGNORECASE)
MASK_LEAD = re.compile(r"^(mask|masks|seg|label|gt)[ _.\-]+(?P<stem>.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Role:
    """What a folder's name says beside the rest of it: that it holds pictures, or masks by a word of that rank, or neither."""

    holds: str
    rest: tuple[str, ...]
    rank: int = 0


@cache
def words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, without numbers: trainA, JPEGImages and val_2017 have train a, images, val."""
    if not name.isascii():
        return (name.lower(),)
    found = " ".join(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))
    for phrase, word in _PHRASES.items():
        found = re.sub(rf"\b{phrase}\b", word, found)
    return tuple(part for word in found.split() for part in _parted(word))


def _parted(word: str) -> tuple[str, ...]:
    """A word that was written together with one of ours, in two: trainannot, testset."""
    for end in (*MASK_WORDS, *_FILLERS):
        start = word.removesuffix(end)
        if start != word and (start in SPLIT_NAMES or start in _PICTURE_WORDS):
            return start, end
    return (word,)


@cache
def split_of(name: str) -> str | None:
    """The split that a folder's name says and nothing else: train2017, test_set; empty if unclear which, None if none."""
    said = [word for word in words(name) if word not in _FILLERS and len(word) > 1]
    if not said or any(word not in SPLIT_NAMES and word not in UNCLEAR_SPLIT_NAMES for word in said):
        return None
    found = {SPLIT_NAMES.get(word, "") for word in said}
    return found.pop() if len(found) == 1 else ""


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """The folders beside each other that are splits: by their own names, or since they differ in a split's name alone."""
    everyone = list(dict.fromkeys(names))
    found = {name: split for name in everyone if (split := split_of(name)) is not None}
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for name in everyone:
        said = [word for word in words(name) if word in SPLIT_NAMES]
        if name not in found and len(said) == 1:
            rest = tuple(word for word in words(name) if word not in SPLIT_NAMES)
            alike.setdefault(rest, {})[name] = SPLIT_NAMES[said[0]]
    for group in alike.values():
        found |= group if len(set(group.values())) > 1 else {}
    return found


@cache
def role(name: str) -> Role:
    """What a folder of this name holds."""
    said = words(name)
    ranks = [MASK_WORDS.index(word) for word in said if word in MASK_WORDS]
    rest = tuple(word for word in said if word not in MASK_WORDS and word not in _PICTURE_WORDS)
    rest += tuple(re.findall(r"\d+", name)) if said and name.isascii() and not name.startswith(("leftImg8bit", "1st")) else ()
    if ranks:
        return Role("masks", rest, min(ranks))
    pictures = any(word in _PICTURE_WORDS for word in said) or split_of(name) is not None
    return Role("pictures" if pictures else "", rest)


def is_pictures_in_general(name: str) -> bool:
    """Whether a name says no more than that pictures lie there, or a part of them: images, imgs_2, HAM10000_images_part_1."""
    said = [word for word in words(name) if len(word) > 1]
    start = [word for word in said if word not in _PARTS]
    is_part = len(start) < len(said)
    return start[-1] in _PICTURES_IN_GENERAL and (is_part or len(start) == 1) if start else said == ["fold"]


def is_masks_in_general(name: str) -> bool:
    """Whether a name says no more than that masks lie there, in words that name nothing one could photograph."""
    said = set(words(name))
    return bool(said & _MASKS_IN_GENERAL) and said <= _MASKS_IN_GENERAL | {"class", "instances", "maps"}


def speaks_of_masks(name: str) -> bool:
    """Whether a name has a word for masks in it, which a class of photographs may have too."""
    return any(word in MASK_WORDS for word in words(name))
