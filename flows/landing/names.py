"""The meaning of names of folders and files in public data sets: splits, images in general, masks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

# The spellings that folders and the column `split` of a table may have; eval is a test, as in Hugging Face's data sets.
SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# The files of CoNLL-2003 for validation and test.
_TEST_HALVES: Mapping[str, str] = {"testa": "val", "testb": "test"}
# Names of splits for which nobody can say which of ours they are.
UNCLEAR_SPLIT_NAMES = ("holdout", "unlabelled", "unlabeled", "unsup", "submission")
# Words that say no more than that images lie there.
_IMAGES_IN_GENERAL = frozenset({"images", "image", "imgs", "img"})
_FILLERS = _IMAGES_IN_GENERAL.union(
    ("set", "sets", "data", "dataset", "split", "pictures", "photos", "raw", "full", "all", "new")
)
# The earlier a word stands here, the more likely a folder of that name holds the masks.
MASK_WORDS = (
    *("masks", "mask", "annotations", "annot", "labels", "label", "annotation", "annots", "anno", "groundtruth", "gt", "gts"),
    *("segmentation", "segmentations", "trimaps", "trimap", "seg", "segs", "manual", "targets", "target", "outputs", "output"),
    *("labelled", "labeled", "instances"),
)
_IMAGE_WORDS = _IMAGES_IN_GENERAL.union(
    ("inputs", "input", "photos", "photo", "pictures", "picture", "originals", "original", "rgb")
)
_PARTS = frozenset({"part", "subset", "fold", "tr", "ts"})
# Words that say no more than that masks lie there.
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
# What data sets put behind an image's stem, or before it, to name its mask.
_SUFFIXES = (*MASK_WORDS[:-1], "labelids", "l", "m", "matte", "segmented", "segmap", "ground_truth", "gtfine_labelids", "manual1")
_ANY_SUFFIX = "|".join(sorted(map(re.escape, _SUFFIXES), key=len, reverse=True))
MASK_MARK = re.compile(rf"^(?P<stem>.+?)[ _.\-]+({_ANY_SUFFIX})$", re.IGNORECASE)
MASK_LEAD = re.compile(r"^(mask|masks|seg|label|gt)[ _.\-]+(?P<stem>.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Role:
    """The meaning of a folder's name: `holds` is 'images', 'masks' or '', `rest` are its other words.

    `rank` is the place in MASK_WORDS of the word that says masks; lower is likelier.
    """

    holds: str
    rest: tuple[str, ...]
    rank: int = 0


@cache
def words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, without numbers: 'trainA' gives train a, 'JPEGImages' images, 'val_2017' val."""
    if not name.isascii():
        return (name.lower(),)
    text = " ".join(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))
    for phrase, word in _PHRASES.items():
        text = re.sub(rf"\b{phrase}\b", word, text)
    return tuple(part for word in text.split() for part in _parted(word))


def _parted(word: str) -> tuple[str, ...]:
    """The two words of a compound that ends in one of ours (trainannot, testset), else the word itself."""
    for end in (*MASK_WORDS, *_FILLERS):
        start = word.removesuffix(end)
        if start != word and (start in SPLIT_NAMES or start in _IMAGE_WORDS):
            return start, end
    return (word,)


@cache
def split_of(name: str) -> str | None:
    """The split of a folder whose name says only that (train2017, test_set); '' if it is unclear which, None if it is none."""
    said = [word for word in words(name) if word not in _FILLERS and len(word) > 1]
    if not said or any(word not in SPLIT_NAMES and word not in UNCLEAR_SPLIT_NAMES for word in said):
        return None
    splits = {SPLIT_NAMES.get(word, "") for word in said}
    return splits.pop() if len(splits) == 1 else ""


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """The splits among folders beside each other: by their own names, or because they differ only in a split's name."""
    everyone = list(dict.fromkeys(names))
    splits = {name: split for name in everyone if (split := split_of(name)) is not None}
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for name in everyone:
        said = [word for word in words(name) if word in SPLIT_NAMES]
        if name not in splits and len(said) == 1:
            rest = tuple(word for word in words(name) if word not in SPLIT_NAMES)
            alike.setdefault(rest, {})[name] = SPLIT_NAMES[said[0]]
    for group in alike.values():
        splits |= group if len(set(group.values())) > 1 else {}
    return splits


def split_at_an_end(name: str, *, halves: bool) -> str | None:
    """The split that a name says by its first or last word (emerging.dev, wnut17train): '' if unclear which, None if neither.

    With `halves`, testa is val and testb is test.
    """
    said = [word for word in words(name) if word not in _FILLERS and len(word) > 1]
    known = {**SPLIT_NAMES, **dict.fromkeys(UNCLEAR_SPLIT_NAMES, ""), **(_TEST_HALVES if halves else {})}
    splits = {known[word] for word in (*said[:1], *said[-1:]) if word in known}
    return None if not splits else splits.pop() if len(splits) == 1 else ""


@cache
def role(name: str) -> Role:
    """What a folder of this name holds: images, masks, or neither as far as its name says."""
    said = words(name)
    ranks = [MASK_WORDS.index(word) for word in said if word in MASK_WORDS]
    rest = tuple(word for word in said if word not in MASK_WORDS and word not in _IMAGE_WORDS)
    rest += tuple(re.findall(r"\d+", name)) if said and name.isascii() and not name.startswith(("leftImg8bit", "1st")) else ()
    if ranks:
        return Role("masks", rest, min(ranks))
    images = any(word in _IMAGE_WORDS for word in said) or split_of(name) is not None
    return Role("images" if images else "", rest)


def is_images_in_general(name: str) -> bool:
    """Whether a name says no more than that images lie there, or a part of them: images, imgs_2, HAM10000_images_part_1."""
    said = [word for word in words(name) if len(word) > 1]
    start = [word for word in said if word not in _PARTS]
    is_part = len(start) < len(said)
    return start[-1] in _IMAGES_IN_GENERAL and (is_part or len(start) == 1) if start else said == ["fold"]


def is_masks_in_general(name: str) -> bool:
    """Whether a name says no more than that masks lie there, in words for nothing that one could photograph."""
    said = set(words(name))
    return bool(said & _MASKS_IN_GENERAL) and said <= _MASKS_IN_GENERAL | {"class", "instances", "maps"}


def speaks_of_masks(name: str) -> bool:
    """Whether a name has a word for masks in it, as also a class of photographs may have."""
    return any(word in MASK_WORDS for word in words(name))
