"""Sources of every layout, brought into a data folder."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from flows.errors import AskedWrongly, Busy, Unreachable
from flows.landing import IngestReport, ingest
from flows.landing import arrivals as arrivals_room
from flows.manifest import mask_files, parse, parse_masks, split_counts
from flows.records import Mask, Sample
from heads.tasks.names import split_labels
from tests.object_store import Bucket, serving

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SETS = {"pets3": (598, 298), "hymenoptera": (397, 34), "sign_digits": (2062, 250), "camvid": (701, 233)}


def draw(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = hashlib.sha512(str(seed).encode()).digest() * 256
    Image.frombytes(mode, size, noise[: size[0] * size[1] * len(mode)]).save(path)
    return path


def class_folders(root: Path, per_class: int = 20, classes: tuple[str, ...] = ("ant", "bee"), first: int = 0) -> Path:
    for number, name in enumerate(classes):
        for index in range(per_class):
            draw(root / name / f"{first + index}.png", first + 1000 * number + index)
    return root


def samples(data: Path) -> dict[str, Sample]:
    return {sample.file: sample for sample in parse((data / "manifest.csv").read_text())}


def masks(data: Path) -> dict[str, Mask]:
    return parse_masks((data / "masks.csv").read_text())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "data"


def test_the_digits_are_the_same_bytes_everywhere(data: Path) -> None:
    report = ingest("digits", data)
    text = (data / "manifest.csv").read_text()
    assert report == IngestReport(1797, 0, 0, 0, (), (), 1797)
    assert hashlib.sha256(text.encode()).hexdigest() == "d41e4e14a8387a96f2c8ec32f7a769e367521702bb3655a793a9474bf20ebe5c"
    with Image.open(data / "images/0/0000.bmp") as image:
        assert (image.mode, image.size, image.getpixel((2, 0))) == ("L", (8, 8), 80)


def test_ingesting_again_changes_nothing(data: Path) -> None:
    ingest("digits", data)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    report = ingest("digits", data)
    assert (report.unchanged, report.added, report.updated) == (1797, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


@pytest.mark.parametrize("name", SETS)
def test_a_real_set_comes_in_whole(name: str, data: Path) -> None:
    source = SHARED / name
    if not source.is_dir():
        pytest.skip(f"the set {name} is not beside this checkout")
    report = ingest(str(source), data)
    found = samples(data)
    assert (report.num_samples, split_counts(found.values())["test"]) == SETS[name]
    assert (report.quarantined, report.warnings) == ((), ())
    assert all((data / file).is_file() for file in found)
    named = mask_files(found.values())
    assert all((data / cell).is_file() for cell in named)
    assert (masks(data).keys() if named else set()) == named == ({f"masks/{f}" for f in tree(data / "masks")} if named else set())
    if name == "camvid":
        # As the set's own page has it: 11.7 million pixels of road in 367 training masks, 4.0 % void.
        train = [masks(data)[str(s.labels["mask"])].pixels for s in found.values() if s.split == "train"]
        share = {value: sum(pixels.get(value, 0) for pixels in train) / (367 * 192 * 256) for value in range(12)}
        assert (round(share[3], 3), round(share[11], 3), round(sum(share.values()), 9)) == (0.317, 0.040, 1)
    if name == "pets3":
        assert tuple(next(iter(found.values())).labels) == ("breed", "species", "mask")
        assert ingest(str(source), data).unchanged == report.num_samples


def test_class_folders_become_a_target_called_label(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    (source / "README.md").write_text("words")
    (source / ".hidden").mkdir()
    draw(source / ".hidden" / "x.png", 9)
    report = ingest(source, data)
    found = samples(data)
    assert report.num_samples == 40
    assert found["images/ant/0.png"].labels == {"label": "ant"}
    assert all(split_counts(found.values()).values())


def test_split_folders_keep_their_splits_and_other_names_of_them(tmp_path: Path, data: Path) -> None:
    for split, first in (("trainval", 0), ("valid", 100), ("test", 200)):
        class_folders(tmp_path / "source" / split, 6, first=first)
    ingest(tmp_path / "source", data)
    assert split_counts(samples(data).values()) == {"train": 12, "val": 12, "test": 12}
    assert samples(data)["images/valid/ant/100.png"].split == "val"


def table_source(root: Path, lines: list[str], num_images: int = 24, images: str = "images") -> Path:
    for index in range(num_images):
        draw(root / images / f"{index}.png", index)
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_table_gives_targets_splits_groups_and_missing_labels(tmp_path: Path, data: Path) -> None:
    lines = ["file,breed,species,split,group"]
    lines += [f"{i}.png,{'ab'[i % 2]},{'' if i == 3 else 'xy'[i % 2]},{('train', 'val', 'test')[i % 3]},g{i}" for i in range(24)]
    ingest(table_source(tmp_path / "source", lines), data)
    found = samples(data)["images/3.png"]
    assert (found.labels, found.split, found.group) == ({"breed": "b", "species": None}, "train", "g3")


def test_a_parquet_table_reads_like_a_csv_one(tmp_path: Path, data: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    source = table_source(tmp_path / "source", ["file,x"])
    (source / "labels.csv").unlink()
    columns = {"file": [f"images/{i}.png" for i in range(24)], "count": [None if i == 3 else i % 2 for i in range(24)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), source / "labels.parquet")
    ingest(source, data)
    assert samples(data)["images/3.png"].labels == {"count": None}
    assert samples(data)["images/5.png"].labels == {"count": "1"}


def test_a_column_of_image_paths_is_a_mask_target(tmp_path: Path, data: Path) -> None:
    lines = ["file,kind,outline"] + [f"{i}.png,{'ab'[i % 2]},{'' if i == 3 else f'drawn/m{i}.png'}" for i in range(24)]
    source = table_source(tmp_path / "source", lines)
    for index in range(24):
        draw(source / "drawn" / f"m{index}.png", index, mode="L")
    ingest(source, data)
    assert samples(data)["images/4.png"].labels == {"kind": "a", "outline": "masks/drawn/m4.png"}
    assert samples(data)["images/3.png"].labels == {"kind": "b", "outline": None}
    assert (data / "masks/drawn/m4.png").is_file()


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("train", "trainannot"), ("train", "train_masks"), ("train/images", "train/masks")]
)
def test_pairs_of_the_same_stem_make_a_target_called_mask(tmp_path: Path, data: Path, images: str, masks: str) -> None:
    for index in range(24):
        draw(tmp_path / "source" / images / f"{index}.jpg", index)
        draw(tmp_path / "source" / masks / f"{index}.png", index, mode="L")
    ingest(tmp_path / "source", data)
    found = samples(data)
    assert len(found) == 24
    assert all(sample.labels["mask"] and (data / sample.labels["mask"]).is_file() for sample in found.values())


def test_two_rows_for_one_image_keep_the_first(tmp_path: Path, data: Path) -> None:
    lines = ["file,kind"] + [f"{i}.png,{'ab'[i % 2]}" for i in range(24)] + ["images/5.png,a"]
    report = ingest(table_source(tmp_path / "source", lines), data)
    assert report.quarantined == (("5.png", "another image of the source has the same name"),)
    assert (report.num_samples, samples(data)["images/5.png"].labels["kind"]) == (24, "b")


def test_a_pipe_among_the_images_is_set_aside_instead_of_waited_for(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    os.mkfifo(source / "ant" / "pipe.png")
    assert ingest(source, data).quarantined == (("ant/pipe.png", "it is no regular file"),)


def test_a_bad_image_costs_one_line_in_the_quarantine(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    (source / "ant" / "torn.jpg").write_bytes(b"not an image")
    whole = draw(source / "ant" / "cut.png", 77, (64, 64)).read_bytes()
    (source / "ant" / "cut.png").write_bytes(whole[:-3000])
    report = ingest(source, data, max_bad_share=0.1)
    assert [file for file, _ in report.quarantined] == ["ant/cut.png", "ant/torn.jpg"]
    assert report.quarantined[1][1] == "is no image in a format that Pillow reads"
    assert "images/ant/torn.jpg" not in samples(data)
    assert not (data / "images/ant/torn.jpg").exists()
    listed = (data / "quarantine.csv").read_text()
    assert listed.splitlines()[0] == "file,digest,reason"
    assert hashlib.md5(b"not an image").hexdigest() in listed
    ingest(source, data, max_bad_share=0.1)
    assert (data / "quarantine.csv").read_text() == listed
    shutil.rmtree(source / "ant")
    draw(source / "ant" / "torn.jpg", 5)
    ingest(source, data)
    assert "torn" not in (data / "quarantine.csv").read_text()


def test_what_training_cannot_read_is_set_aside_before_it(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source", per_class=40)
    Image.new("F", (8, 8), 0.5).save(source / "ant" / "float.tif")
    (source / "bee" / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    reasons = dict(ingest(source, data).quarantined)
    assert reasons["ant/float.tif"].startswith("pixels of mode F have no known range")
    assert reasons["bee/program.jpg"] == "is no image in a format that Pillow reads", "PostScript is a language, never run"


def test_a_mask_of_another_size_or_with_colours_sets_its_image_aside(tmp_path: Path, data: Path) -> None:
    for index in range(60):
        draw(tmp_path / "source/images" / f"{index}.png", index)
        draw(tmp_path / "source/masks" / f"{index}.png", index, mode="L")
    draw(tmp_path / "source/masks/1.png", 1, (8, 4), "L")
    draw(tmp_path / "source/masks/2.png", 2)
    report = ingest(tmp_path / "source", data)
    reasons = dict(report.quarantined)
    assert reasons.keys() == {"1.png", "2.png"}
    assert "8x4" in reasons["1.png"]
    assert "3 channels" in reasons["2.png"]


def pairs(root: Path, count: int = 24) -> Path:
    """Pictures of 8 x 6 pixels with masks of the values 0 to 2."""
    for index in range(count):
        draw(root / "images" / f"{index}.png", index, (8, 6))
        path = root / "masks" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (8, 6), bytes((index + pixel) % 3 for pixel in range(48))).save(path)
    return root


def test_every_mask_is_told_with_its_md5_and_the_pixels_of_each_value(tmp_path: Path, data: Path) -> None:
    source = pairs(tmp_path / "source")
    draw(source / "images" / "alone.png", 99)
    ingest(source, data)
    found = masks(data)
    assert found.keys() == {f"masks/{index}.png" for index in range(24)}
    content = (source / "masks/5.png").read_bytes()
    assert found["masks/5.png"] == Mask(hashlib.md5(content).hexdigest(), {0: 16, 1: 16, 2: 16})
    ingest(class_folders(tmp_path / "more"), data)
    assert masks(data) == found, "another source leaves them"
    (source / "images/3.png").unlink()
    ingest(source, data, mirror=True, max_removed_share=1)
    assert found.keys() - masks(data).keys() == {"masks/3.png"}
    ingest(class_folders(tmp_path / "more"), data, mirror=True, max_removed_share=1)
    assert not (data / "masks.csv").exists()


def test_known_masks_are_not_decoded_again_but_new_pairs_are(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs(tmp_path / "source")
    ingest(source, data)
    before, decoded = tree(data), list[bytes]()
    decode_mask = arrivals_room.decode_mask

    def watched(mask: bytes, image: bytes, name: str) -> object:
        decoded.append(mask)
        return decode_mask(mask, image, name)

    monkeypatch.setattr(arrivals_room, "decode_mask", watched)
    (data / "masks/4.png").unlink()
    assert ingest(source, data).updated == 1
    assert (decoded, tree(data)) == ([], before)
    Image.new("L", (8, 6), 7).save(source / "masks/5.png")
    shutil.copy(source / "masks/8.png", source / "masks/7.png")
    draw(source / "images/6.png", 555, (8, 6))
    assert ingest(source, data).updated == 3
    assert sorted(decoded) == sorted((source / f"masks/{index}.png").read_bytes() for index in (5, 6, 7))
    assert masks(data)["masks/5.png"].pixels == {7: 48}


def test_masks_of_an_older_ingest_are_counted_by_the_next(tmp_path: Path, data: Path) -> None:
    source = pairs(tmp_path / "source")
    ingest(source, data)
    before = tree(data)
    (data / "masks.csv").unlink()
    assert ingest(source, data).unchanged == 24
    assert tree(data) == before


def test_a_mask_may_lie_as_its_picture_is_stored_or_as_it_stands(tmp_path: Path, data: Path) -> None:
    source = pairs(tmp_path / "source", 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    for index, size in ((0, (8, 6)), (1, (6, 8)), (2, (7, 8))):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(source / "images" / f"{index}.png", exif=exif)
        Image.new("L", size, 1).save(source / "masks" / f"{index}.png")
    assert ingest(source, data).quarantined == (
        ("2.png", "its mask: is 7x8 px, the image 6x8 px; a mask has the size of its image"),
    )


def test_cells_of_several_labels_are_carved_by_each_of_them(tmp_path: Path, data: Path) -> None:
    tags = ("sky|sea", "sea | sand", "sand", "|")
    lines = ["file,tags"] + [f"{i}.png,{tags[i % 4]}" for i in range(80)]
    ingest(table_source(tmp_path / "source", lines, 80), data)
    for split in ("train", "val", "test"):
        cells = {str(s.labels["tags"]) for s in samples(data).values() if s.split == split}
        assert {label for cell in cells for label in split_labels(cell)} == {"sky", "sea", "sand"}


def test_sets_of_labels_that_all_differ_are_carved_by_their_labels(tmp_path: Path, data: Path) -> None:
    # Three rows have the rare label, and no two rows the same set.
    pairs_of = [f"c{i}|c{j}" for i in range(10) for j in range(i)]
    lines = ["file,tags"] + [f"{i}.png,{pairs_of[i]}{'|rare' if i < 3 else ''}" for i in range(45)]
    report = ingest(table_source(tmp_path / "source", lines, 45), data)
    assert any(
        "1 label has too few samples for train, val and test: none or few of them are held out: 'rare' of tags" in warning
        for warning in report.warnings
    )
    assert [s.split for s in samples(data).values() if "rare" in str(s.labels["tags"])].count("train") >= 2


def test_a_row_without_its_image_is_quarantined(tmp_path: Path, data: Path) -> None:
    lines = ["file,kind"] + [f"{i}.png,{'ab'[i % 2]}" for i in range(25)]
    report = ingest(table_source(tmp_path / "source", lines), data)
    assert report.quarantined == (("24.png", "no such image in the source"),)


def test_absolute_paths_are_those_of_the_source_by_whichever_link_and_others_are_told_what_to_write(
    tmp_path: Path, data: Path
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    rows = [f"{(real, link)[i % 2] / 'images' / f'{i}.png'},{'ab'[i // 2 % 2]}" for i in range(24)]
    table_source(real, ["file,kind", *rows, "/elsewhere/24.png,a"])
    for source in (real, link, tmp_path / "real" / ".." / "link"):
        report = ingest(source, data)
        ((file, fault),) = report.quarantined
        assert (report.num_samples, file, fault) == (
            24,
            "/elsewhere/24.png",
            "no such image in the source; write paths relative to the table's folder",
        )


def too_many_bad(root: Path) -> None:
    class_folders(root)
    for index in range(3):
        (root / "ant" / f"torn{index}.jpg").write_bytes(b"no")


def flat(root: Path) -> None:
    for index in range(5):
        draw(root / f"{index}.png", index)


REFUSED = {
    "a missing source": (lambda root: None, "not a folder"),
    "an empty source": (lambda root: root.mkdir(), "empty"),
    "no image at all": (lambda root: (root.mkdir(), (root / "notes.txt").write_text("x")), "empty"),
    "one class only": (lambda root: class_folders(root, classes=("ant",)), "one class only.*ant"),
    "one class in a table": (
        lambda root: table_source(root, ["file,kind"] + [f"{i}.png,a" for i in range(24)]),
        "one class only.*kind: a",
    ),
    "no layout": (flat, "<class>"),
    "too many bad images": (too_many_bad, "3 of 43 images are bad"),
    "a table without targets": (lambda root: table_source(root, ["file,split", "1.png,train"]), "no target"),
    "a table without files": (lambda root: table_source(root, ["name,kind", "1.png,a"]), "no column 'file'"),
    "an unknown split": (
        lambda root: table_source(root, ["file,kind,split", "1.png,a,holdout", "2.png,b,train"]),
        "holdout.*allowed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_source_is_refused_and_nothing_changes(case: str, tmp_path: Path, data: Path) -> None:
    make, words = REFUSED[case]
    make(tmp_path / "source")
    with pytest.raises(AskedWrongly, match=words):
        ingest(str(tmp_path / "source"), data)
    assert not data.exists()
    ingest(class_folders(tmp_path / "good"), data)
    before = tree(data)
    with pytest.raises(AskedWrongly, match=words):
        ingest(str(tmp_path / "source"), data, mirror=True)
    assert tree(data) == before


def test_new_images_are_added_changed_ones_updated_and_none_removed(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    ingest(source, data)
    before = samples(data)
    (source / "ant" / "1.png").unlink()
    draw(source / "ant" / "2.png", 555)
    draw(source / "bee" / "new.png", 556)
    report = ingest(source, data)
    after = samples(data)
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 0, 39)
    assert after["images/ant/2.png"].digest == hashlib.md5((data / "images/ant/2.png").read_bytes()).hexdigest()
    assert {file: sample.split for file, sample in before.items()}.items() <= {f: s.split for f, s in after.items()}.items()


def test_only_a_mirror_removes(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    ingest(source, data)
    (source / "ant" / "1.png").unlink()
    report = ingest(source, data, mirror=True)
    assert (report.removed, report.num_samples) == (1, 39)
    assert not (data / "images/ant/1.png").exists()


def test_a_lost_working_file_is_brought_back(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    ingest(source, data)
    before = tree(data)
    (data / "images/ant/1.png").unlink()
    assert ingest(source, data).updated == 1
    assert tree(data) == before


def test_another_source_adds_its_columns_and_leaves_the_rest_missing(tmp_path: Path, data: Path) -> None:
    ingest(class_folders(tmp_path / "source"), data)
    lines = ["file,kind"] + [f"{i}.png,{'ab'[i % 2]}" for i in range(24)]
    ingest(table_source(tmp_path / "other", lines), data)
    assert samples(data)["images/ant/1.png"].labels == {"label": "ant", "kind": None}
    assert samples(data)["images/1.png"].labels == {"label": None, "kind": "b"}


def test_more_images_of_one_known_class_are_welcome(tmp_path: Path, data: Path) -> None:
    ingest(class_folders(tmp_path / "source"), data)
    assert ingest(class_folders(tmp_path / "more", 3, ("bee",), first=500), data).added == 3


def test_the_same_bytes_never_straddle_two_splits(tmp_path: Path, data: Path) -> None:
    source = tmp_path / "source"
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        class_folders(source / split, 6, first=first)
    shutil.copy(source / "train/ant/0.png", source / "test/ant/copy.png")
    report = ingest(source, data)
    assert samples(data)["images/train/ant/0.png"].split == "test"
    assert any("same bytes" in warning for warning in report.warnings)


def test_a_class_too_small_to_split_stays_in_train_and_is_named(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source")
    class_folders(source, 4, ("wasp",), first=300)
    report = ingest(source, data)
    assert {sample.split for file, sample in samples(data).items() if "wasp" in file} == {"train"}
    assert any("'wasp' of label is too small" in warning for warning in report.warnings)


def test_a_column_of_ids_leaves_the_splits_to_the_classes_for_good(tmp_path: Path, data: Path) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},g{i // 3}" for i in range(60)]
    report = ingest(table_source(tmp_path / "source", ["file,label,serie", *rows], 60), data)
    assert [warning for warning in report.warnings if "serie (20 in 60 samples) looks like a column of ids" in warning]
    assert all(split_counts(samples(data).values()).values())
    before = samples(data)
    table_source(tmp_path / "source", ["file,label,group", *rows], 60)
    (warning,) = ingest(tmp_path / "source", data).warnings
    assert "groups lie in several splits, which the source or an earlier ingest gave them" in warning
    assert {file: sample.split for file, sample in samples(data).items()} == {f: s.split for f, s in before.items()}


@pytest.mark.parametrize("was_judged", [True, False])
def test_a_version_without_val_and_test_is_carved_again_unless_there_was_one_to_judge_by(
    was_judged: bool, tmp_path: Path, data: Path
) -> None:
    rows = [f"{i}.png,c{i // 3}" for i in range(60)]
    report = ingest(table_source(tmp_path / "source", ["file,label", *rows], 60), data)
    assert split_counts(samples(data).values()) == {"train": 60, "val": 0, "test": 0}
    assert any("every sample that could be carved is of a class that is too small" in warning for warning in report.warnings)
    table_source(tmp_path / "source", ["file,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(60))], 60)
    report = ingest(tmp_path / "source", data, was_judged=lambda: was_judged)
    assert all(split_counts(samples(data).values()).values()) is not was_judged
    assert not any("a champion that was trained before has seen them" in warning for warning in report.warnings)


def test_what_an_earlier_source_may_have_given_is_not_carved_where_this_one_gives_splits(tmp_path: Path, data: Path) -> None:
    class_folders(tmp_path / "first/train", 4)
    ingest(tmp_path / "first", data)
    for split, first in (("train", 100), ("test", 200)):
        class_folders(tmp_path / "second" / split, 20, first=first)
    ingest(tmp_path / "second", data)
    assert {s.split for file, s in samples(data).items() if "00." not in file and len(Path(file).stem) == 1} == {"train"}
    assert split_counts(samples(data).values())["val"] > 0


def test_two_writers_at_once_are_refused(tmp_path: Path, data: Path) -> None:
    storage = data.parent / ".headstart"
    storage.mkdir(parents=True)
    with (storage / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="is writing the data"):
            ingest(class_folders(tmp_path / "source"), data)


def test_progress_counts_every_image(tmp_path: Path, data: Path) -> None:
    seen: list[tuple[int, int]] = []
    ingest(class_folders(tmp_path / "source"), data, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 40) for number in range(1, 41)]


def test_a_source_that_holds_the_workspace_does_not_feed_on_it(tmp_path: Path) -> None:
    pairs(tmp_path, 24)
    data = tmp_path / "data"
    draw(tmp_path / "storage" / "images" / "curve.png", 1)
    first = ingest(tmp_path, data, own=(tmp_path / "storage",))
    assert (first.added, first.warnings) == (24, ())
    before = tree(data)
    (tmp_path / "link").symlink_to(data)
    again = ingest(tmp_path, data, own=(tmp_path / "storage",))
    assert (again.unchanged, again.added, again.num_samples, again.warnings) == (24, 0, 24, ())
    assert tree(data) == before
    for inside in (data, data / "images", tmp_path / "link", tmp_path / ".headstart"):
        with pytest.raises(AskedWrongly, match="the workspace's own folder"):
            ingest(inside, data)


def test_the_data_of_another_workspace_in_the_source_is_passed_over_with_a_word(tmp_path: Path, data: Path) -> None:
    source = pairs(tmp_path / "source")
    ingest(source, source / "other" / "data")
    report = ingest(source, data)
    assert (report.num_samples, report.warnings) == (24, ("left out of the source: other/data (the data of another workspace)",))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    with serving(monkeypatch) as bucket:
        yield bucket


def test_a_bucket_is_listed_and_only_what_is_new_is_fetched(bucket: type[Bucket], tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source", 7)
    bucket.objects.update({f"in/{path.relative_to(source).as_posix()}": path.read_bytes() for path in source.rglob("*.png")})
    bucket.objects["elsewhere/ant/1.png"] = b"no"
    assert ingest("s3://pets/in", data).added == 14
    bucket.asked.clear()
    image = io.BytesIO()
    Image.new("RGB", (5, 5)).save(image, "png")
    bucket.objects["in/bee/1.png"] = image.getvalue()
    del bucket.objects["in/ant/2.png"]
    report = ingest("s3://pets/in/", data, mirror=True)
    assert (report.added, report.updated, report.removed, report.unchanged) == (0, 1, 1, 12)
    assert bucket.fetched() == ["in/bee/1.png"]
    assert ingest("s3://pets/in", data).unchanged == 13


def test_a_bucket_that_is_empty_or_missing_is_refused(bucket: type[Bucket], data: Path) -> None:
    with pytest.raises(AskedWrongly, match="empty"):
        ingest("s3://pets/nothing", data)
    with pytest.raises(AskedWrongly, match="NoSuchBucket"):
        ingest("s3://other/in", data)


def test_a_bucket_is_read_by_the_rules_of_folders(bucket: type[Bucket], tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source", 7)
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.png")}
    left = ["ant", "ant/../x.png", "ant//y.png", "ant/" + "n" * 300 + ".png"]
    others = ["ant/.DS_Store", "ant/._0.png", "__MACOSX/ant/0.png", ".git/0.png", ".net/0.png", "ant/0.heic", "ant/"]
    bucket.objects.update({f"in/{name}": files.get(name, b"x") for name in (*files, *left, *others)})
    bucket.objects.update({f"flat/{split}/{name}.png": b"x" for split in ("train", "test1") for name in "ab"})
    report = ingest("s3://pets/in", data)
    assert (report.added, report.quarantined) == (14, ())
    assert any("no names of files (4), e.g. 'in/ant" in warning for warning in report.warnings)
    assert any(w.startswith("left out of the source: 1 file (1 .heic); .net (hidden") for w in report.warnings)
    assert not any(".DS_Store" in key or "MACOSX" in key or ".git" in key for key in bucket.fetched())
    with pytest.raises(AskedWrongly, match=r"source 's3://pets/flat' has the folders 'test1', 'train', named as splits are"):
        ingest("s3://pets/flat", data)


def test_what_a_killed_fetch_left_behind_is_no_part_of_a_bucket(bucket: type[Bucket], tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "source", 7)
    bucket.objects.update({f"in/{path.relative_to(source).as_posix()}": path.read_bytes() for path in source.rglob("*.png")})
    ingest("s3://pets/in", data)
    (kept,) = (data.parent / ".headstart/sources").iterdir()
    draw(kept / "files/ant/ghost.png", 99)
    draw(kept / "files/gone/ghost.png", 98)
    assert ingest("s3://pets/in", data).num_samples == 14
    assert not (kept / "files/gone").exists()
    # A key that was a folder may become an object.
    bucket.objects = {key.replace("in/bee/", "in/wasp/"): content for key, content in bucket.objects.items()}
    bucket.objects["in/bee"] = b"a note"
    assert ingest("s3://pets/in", data).added == 7
    assert (kept / "files/bee").read_bytes() == b"a note"


def test_an_s3_server_that_does_not_answer_is_named(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="AWS_ENDPOINT_URL_S3"):
        ingest("s3://pets/in", data)
