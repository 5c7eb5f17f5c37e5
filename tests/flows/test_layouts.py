"""What the folders of a source mean: classes, splits, masks, or nothing that can be learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from flows.errors import AskedWrongly
from flows.landing.entries import Entry, Listing
from flows.landing.layouts import scan
from flows.landing.names import split_of, splits_among

NUM = 6


def photo(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = hashlib.sha512(str(path).encode()).digest() * 64
    Image.frombytes(mode, (16, 16), noise[: 256 * len(mode)]).resize((40, 40), Image.Resampling.BICUBIC).save(path)


def mask(path: Path, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("L", (40, 40), bytes(255 * (pixel % 40 > len(path.stem)) for pixel in range(1600))).convert(mode).save(path)


def photos(root: Path, *patterns: str, count: int = NUM) -> Path:
    for pattern in patterns:
        for index in range(count):
            photo(root / pattern.format(index))
    return root


def masks(root: Path, pattern: str, count: int = NUM, mode: str = "L") -> Path:
    for index in range(count):
        mask(root / pattern.format(index), mode)
    return root


def labels(found: Listing) -> set[str | None]:
    return {entry.labels.get("label") for entry in found.entries}


def pairs(entries: Iterable[Entry]) -> dict[str, str]:
    return {entry.file: picture.file for entry in entries for picture in entry.masks.values() if picture}


SPLITS = {
    "train": "train Train TRAIN training training_set Training-Data train2017 trainA trainset train_images trainval",
    "val": "val Val valid validation Validation val2017 dev devel validation_set",
    "test": "test TEST test1 testing test_set testset Testing eval evaluation test_images test-data",
    "": "holdout hold_out unlabelled unlabeled unsup test-dev",
}


@pytest.mark.parametrize(("split", "spellings"), SPLITS.items())
def test_a_split_is_known_in_every_common_spelling(split: str, spellings: str) -> None:
    assert {name: split_of(name) for name in spellings.split()} == dict.fromkeys(spellings.split(), split)


def test_what_only_holds_the_name_of_a_split_is_none() -> None:
    for name in ("train_station", "bullet_train", "contest", "latest", "testudo", "validé", "device", "0", "data", "dog"):
        assert split_of(name) is None, name
    assert splits_among(["seg_train", "seg_test", "train_station"]) == {"seg_train": "train", "seg_test": "test"}


SPLIT_FOLDERS = (
    "train test1|train val|Training Testing|trainA trainB|cat dog test|cat validation|holdout dogs|images_train images_test|"
    "bounding_box_train bounding_box_test|train2017 val2017|training_set test_set|train_val cats"
)


@pytest.mark.parametrize("folders", SPLIT_FOLDERS.split("|"))
def test_folders_of_splits_are_no_classes(tmp_path: Path, folders: str) -> None:
    with pytest.raises(AskedWrongly, match="named as splits are"):
        scan(photos(tmp_path, *(f"{name}/{name}.{{}}.jpg" for name in folders.split())))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("TRAIN", "eval"),
    ],
)
def test_splits_in_any_spelling_hold_class_folders(tmp_path: Path, train: str, test: str) -> None:
    found = scan(photos(tmp_path, *(f"{split}/{name}/{{}}.png" for split in (train, test) for name in ("cat", "dog"))))
    assert labels(found) == {"cat", "dog"}
    splits = {entry.file.split("/")[1]: entry.split for entry in found.entries}
    assert splits == {train: "train", test: "val" if test == "val2017" else "test"}


def test_a_split_of_unlabelled_images_is_left_out_with_a_word(tmp_path: Path) -> None:
    found = scan(photos(tmp_path, "train/cat/{}.png", "train/dog/{}.png", "test1/{}.png"))
    assert (labels(found), len(found.entries)) == ({"cat", "dog"}, 2 * NUM)
    assert found.warnings == (
        f"left out of the source: {NUM} images that are not in a place to which its layout gives a label, e.g. test1/0.png",
    )


def test_an_unclear_split_and_a_mixture_of_splits_and_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="which split is the folder 'holdout'"):
        scan(photos(tmp_path / "a", *(f"{split}/{name}/{{}}.png" for split in ("train", "holdout") for name in "ab")))
    root = photos(tmp_path / "pairs", "train/images/{}.jpg", "holdout/images/{}.jpg")
    with pytest.raises(AskedWrongly, match="which split is the folder 'holdout'"):
        scan(masks(masks(root, "train/masks/{}.png"), "holdout/masks/{}.png"))
    with pytest.raises(AskedWrongly, match="class 'cat' both"):
        scan(photos(tmp_path / "b", "cat/{}.png", "dog/{}.png", "test/cat/{}.png", "test/dog/{}.png"))
    with pytest.raises(AskedWrongly, match="named as splits are"):
        scan(photos(tmp_path / "c", "train/train/{}.png", "train/test/{}.png"))


@pytest.mark.parametrize(
    ("images", "drawn"),
    [
        ("images/car{}.jpg", "masks/car{}_mask.png"),
        ("images/car{}.jpg", "masks/car{}-mask.png"),
        ("images/car{}.jpg", "masks/car{}.jpg.png"),
        ("images/car{}.jpg", "masks/mask_car{}.png"),
        ("images/{}.jpg", "labels/{}_label.png"),
        ("img/{}.jpg", "label/{}_seg.png"),
        ("imgs/{}.jpg", "masks/{}.png"),
        ("image/{}.jpg", "gt/{}.png"),
        ("image/{}.jpg", "ground_truth/{}_gt.png"),
        ("photos/{}.jpg", "masks/{}.png"),
        ("Original/{}.tif", "Ground Truth/{}.tif"),
        ("images/pet_{}.jpg", "annotations/trimaps/pet_{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("imagesTr/{}.png", "labelsTr/{}.png"),
        ("train_images/{}.jpg", "train_masks/{}_mask.gif"),
        ("train/{}.jpg", "train_masks/{}_mask.gif"),
        ("train/{}.jpg", "trainannot/{}.png"),
        ("training/images/{}.tif", "training/mask/{}_mask.gif"),
        ("images/training/{}.jpg", "annotations/training/{}.png"),
        ("train2017/{}.jpg", "train2017_masks/{}.png"),
    ],
)
def test_pictures_and_masks_are_paired_by_their_names(tmp_path: Path, images: str, drawn: str) -> None:
    photos(tmp_path, images)
    found = scan(masks(tmp_path, drawn))
    assert found.warnings == ()
    assert {entry.split for entry in found.entries} == {"train" if "train" in images else None}

    def kept(kind: str, file: str) -> str:
        return kind + file.removeprefix(kind)

    expected = {kept("images/", images.format(index)): kept("masks/", drawn.format(index)) for index in range(NUM)}
    assert pairs(found.entries) == expected


def test_objects_of_voc_and_pictures_without_masks_are_left_out_with_a_word(tmp_path: Path) -> None:
    photos(tmp_path, "JPEGImages/{}.jpg", count=9)
    masks(tmp_path, "SegmentationClass/{}.png")
    found = scan(masks(tmp_path, "SegmentationObject/{}.png"))
    assert pairs(found.entries) == {f"images/JPEGImages/{i}.jpg": f"masks/SegmentationClass/{i}.png" for i in range(NUM)}
    assert "9 images that are not in a place" in found.warnings[0]


def test_a_plain_stem_goes_before_one_with_a_word_for_masks(tmp_path: Path) -> None:
    photos(tmp_path, "images/{}.jpg", "images/{}_mask.jpg")
    masks(tmp_path, "masks/{}.png")
    assert pairs(scan(masks(tmp_path, "masks/{}_mask.png")).entries) == {
        f"images/{i}{mark}.jpg": f"masks/{i}{mark}.png" for i in range(NUM) for mark in ("", "_mask")
    }


def test_masks_with_a_word_in_their_names_are_taken_only_where_every_picture_has_one(tmp_path: Path) -> None:
    photos(tmp_path, "images/{}.jpg")
    with pytest.raises(AskedWrongly, match="5 images of 'images' have a mask"):
        scan(masks(tmp_path, "masks/{}_mask.png", NUM - 1))


NO_CLASSES = {
    "masks under other names": (("images/{}.jpg",), "masks/seg-of-{}-x.png", "'images', 'masks', named as"),
    "Cityscapes": (("leftImg8bit/a_{}_leftImg8bit.png",), "gtFine/a_{}_gtFine_labelIds.png", "'leftImg8bit', 'gtFine', named as"),
    "Cityscapes in splits": (
        ("train/leftImg8bit/{}_l.png",),
        "train/gtFine/{}_gtFine_color.png",
        "'leftImg8bit', 'gtFine', named as",
    ),
    "images in splits without labels": (("train/images/{}.jpg", "valid/images/{}.jpg"), "other/{}.txt.png", "'images', named as"),
    "masks of photographs": (("photographs/{}.jpg",), "masks/{}.png", "'masks', which holds masks"),
    "a label folder": (("cells/{}.jpg",), "cells_label/{}.png", "'cells_label', which holds masks"),
    "a folder of annotations": (("cells/{}.jpg",), "annotations/{}.png", "'annotations', named as"),
    "ISIC": (
        ("ISIC_Part1_Data/ISIC_{}.jpg",),
        "ISIC_Part1_GroundTruth/ISIC_{}_Segmentation.png",
        "GroundTruth', which holds masks",
    ),
    "CamVid as it was": (
        ("701_StillsRaw_full/{}.png",),
        "LabeledApproved_full/{}_L.png",
        "LabeledApproved_full', which holds masks",
    ),
    "names that say nothing": (("x/{}.jpg",), "y/{}.png", "'y', which holds masks"),
    "names that say nothing, with more behind stems": (("x/{}.jpg",), "y/{}_outline.png", "'y', which holds masks"),
    "parts of a set": (("HAM10000_images_part_1/{}.jpg", "HAM10000_images_part_2/{}.jpg"), "x/{}.png", "images_part_1', "),
    "masks beside pictures": (("benign/b ({}).png", "normal/n ({}).png"), "benign/b ({})_mask.png", "6 masks lie beside"),
    "patients": (("p1/p1_{}.tif", "p2/p2_{}.tif"), "p1/p1_{}_mask.tif", "6 masks lie beside"),
}


@pytest.mark.parametrize("case", NO_CLASSES)
def test_pictures_and_their_masks_are_no_two_classes(tmp_path: Path, case: str) -> None:
    images, drawn, words = NO_CLASSES[case]
    photos(tmp_path, *images)
    with pytest.raises(AskedWrongly, match=words.replace("(", "\\(")) as refused:
        scan(masks(tmp_path, drawn, mode="RGB" if "CamVid" in case else "L"))
    assert "labels.csv" in str(refused.value)


PLAIN_CLASSES = (
    "a b|with_mask without_mask|masked unmasked|mask no_mask|Mask NonMask|face face_mask|masks hats|photos drawings|"
    "train_station bus_station|positive_images negative_images|labelled blank|0 1|class1 class2"
)


@pytest.mark.parametrize("classes", PLAIN_CLASSES.split("|"))
def test_photographs_with_the_same_stems_are_plain_classes(tmp_path: Path, classes: str) -> None:
    found = scan(photos(tmp_path, *(f"{name}/{{}}.png" for name in classes.split())))
    assert (labels(found), len(found.entries), found.warnings) == (set(classes.split()), 2 * NUM, ())


def test_flat_pictures_of_two_classes_are_plain_classes_too(tmp_path: Path) -> None:
    masks(tmp_path, "circle/{}.png")
    assert labels(scan(masks(tmp_path, "square/{}.png"))) == {"circle", "square"}
    for name in ("mask", "no_mask"):
        for index in range(NUM):
            (tmp_path / "plain" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "plain" / name / f"{index}.png")
    assert labels(scan(tmp_path / "plain")) == {"mask", "no_mask"}


def test_a_folder_too_deep_is_named(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="All lie under 'archive': try that folder"):
        scan(photos(tmp_path, "archive/train/cat/{}.png", "archive/train/dog/{}.png"))


@pytest.mark.parametrize(
    "tree", [("images/train2017/{}.png", "images/val2017/{}.png"), ("photos/all/{}.png",) * 2, ("{}.png",) * 2]
)
def test_annotations_of_another_tool_are_said_not_to_be_read_and_no_folder_is_named_that_is_refused_too(
    tmp_path: Path, tree: tuple[str, str]
) -> None:
    source = photos(tmp_path, *tree)
    (source / "annotations").mkdir()
    (source / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(
        AskedWrongly, match=r"in .json are not read .annotations/instances_train2017.json.: .* table labels.csv"
    ) as told:
        scan(source)
    assert "try that folder" not in str(told.value)


def test_what_a_layout_leaves_out_is_told_in_one_warning(tmp_path: Path) -> None:
    photos(tmp_path, "cat/{}.png", "dog/{}.png", "dog/deep/{}.png", ".net/{}.png")
    for name in ("cat/0.heic", "cat/1.HEIC", "notes.txt", "noend", "README.md", ".DS_Store", "dog/Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "cat" / "loop").symlink_to("..")
    (warning,) = scan(tmp_path).warnings
    assert warning == (
        f"left out of the source: {NUM} images that are not in a place to which its layout gives a label, e.g. dog/deep/0.png; "
        "4 files (2 .heic, 1 no ending, 1 .txt); .net (hidden, as its name starts with a dot); gone (a link that leads nowhere); "
        "cat/loop (a link to a folder that it lies in)"
    )


def test_every_format_of_pillow_counts_and_so_do_linked_folders(tmp_path: Path) -> None:
    photos(tmp_path / "source", "a/{}.png", "B/{}.PNG", "c/{}.jfif", "d/{}.avif")
    photos(tmp_path / "elsewhere", "e/{}.png")
    (tmp_path / "source" / "e").symlink_to("../elsewhere/e")
    found = scan(tmp_path / "source")
    assert (labels(found), found.warnings, len(found.entries)) == ({"a", "B", "c", "d", "e"}, (), 5 * NUM)


def test_images_that_a_table_does_not_name_are_counted_and_those_it_names_need_no_ending(tmp_path: Path) -> None:
    photos(tmp_path, "images/{}.png", "masks/{}.png", "other/{}.png")
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "zero")
    (tmp_path / "labels.csv").write_text("file,kind,mask\nzero,a,\n1.png,b,\n2.png,b,\n")
    found = scan(tmp_path)
    assert next((entry.file, entry.fault) for entry in found.entries) == ("images/zero", None)
    assert f"{3 + 2 * NUM} images that its table does not name, e.g. images/3.png" in found.warnings[0]
