"""Predictions of folders: each image's mask in a file of its own, and one bad file costs one prediction."""

from __future__ import annotations

import csv
import errno
import os
import random
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flows.cli import answers
from flows.stages.predicting import prediction
from flows.stages.predicting.mask_files import mask_files
from flows.stages.predicting.prediction import BATCH_SIZE
from flows.stages.predicting.readings import Reading, Readings, TagsAnswer
from heads.bundle import load, save
from heads.data.image_transforms import preprocess_for
from heads.data.modalities import preprocess_of
from heads.data.wordpiece import learn_vocabulary
from heads.model.model import build_model
from heads.spec import Head, Variant
from tests.cli.conftest import Ask, make_workspace

CLASSES = {"mask": ["0", "9"], "a/b": ["0", "1"], "a_b": ["0", "1"], "..": ["0", "1"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace") / "tiny", "name: tiny\n")


def make_bundle(folder: Path, targets: tuple[str, ...]) -> Path:
    heads = tuple(Head(target=target, task="segmentation", design="fcn") for target in targets)
    variant = Variant(backbone="squeezenet1_1", heads=heads)
    classes = {target: CLASSES[target] for target in targets}
    model, preprocess = build_model(variant, classes, None), preprocess_for(variant.backbone, 64, whole=True)
    return save(folder, model=model, variant=variant, classes=classes, preprocess=preprocess, facts={})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_bundle(tmp_path_factory.mktemp("bundle") / "one", ("mask",)))


def draw(path: Path, size: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(images: list[str], targets: tuple[str, ...] = ("mask",)) -> list[str]:
    return [
        str(place.relative_to("out"))
        for each in mask_files([Path(i) for i in images], targets, Path("out"))
        for place in each.values()
    ]


def test_no_two_images_share_the_file_of_a_mask() -> None:
    assert names(["a-2.png", "a.jpg", "a.png"]) == ["a-2.png", "a.png", "a-3.png"]
    assert names(["a.jpg", "a.png", "a-2.png"]) == ["a.png", "a-3.png", "a-2.png"]
    assert names(["x/a.png", "y/a.png", "z/a.png"]) == ["a.png", "a-2.png", "a-3.png"]
    assert names(["A.png", "a.png"]) == ["A.png", "a-2.png"], "file systems that tell no case apart have one file for both"
    assert names(["\u00e9.png", "e\u0301.png"]) == ["\u00e9.png", "e\u0301-2.png"]
    assert names(["a.png", "a.png"]) == ["a.png", "a-2.png"]
    assert names(["0.png"], ("a/b", "a_b", "..")) == ["a_b/0.png", "a_b-2/0.png", "_/0.png"]
    for seed in range(200):
        images = random.Random(seed).choices(
            [f"{d}/{s}{n}.png" for d in "xy" for s in "aA" for n in ("", "-2", "-3", "-2-2")], k=9
        )
        found = [name.casefold() for name in names(images)]
        assert len(set(found)) == len(found), images


def test_every_answer_is_the_mask_of_its_own_image(workspace: Path, bundle: str, tmp_path: Path, ask: Ask) -> None:
    sizes = {"a-2.png": (41, 20), "a.jpg": (42, 20), "a.png": (43, 20), "deep/a.png": (44, 20), "deep/A.png": (45, 20)}
    for name, size in sizes.items():
        draw(tmp_path / "in" / name, size)
    answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--json")
    assert answer.status == 0, answer.err
    told = {str(Path(row["file"]).relative_to(tmp_path / "in")): row["mask"]["mask"] for row in answer.told["predictions"]}
    assert told.keys() == sizes.keys()
    for name, mask in told.items():
        with Image.open(mask) as picture:
            assert picture.size == sizes[name], name
    assert len(list((tmp_path / "out").iterdir())) == len(sizes)


def test_several_masks_of_an_image_lie_in_folders_of_their_own(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    folder = make_bundle(tmp_path / "bundle", ("a/b", "a_b", ".."))
    draw(tmp_path / "0.png", (30, 20))
    answer = ask(workspace, "predict", str(folder), str(tmp_path / "0.png"), "--output", str(tmp_path / "out/masks"), "--json")
    (row,) = answer.told["predictions"]
    assert {
        target: Path(row[target]["mask"]).relative_to(tmp_path / "out/masks").as_posix() for target in ("a/b", "a_b", "..")
    } == {
        "a/b": "a_b/0.png",
        "a_b": "a_b-2/0.png",
        "..": "_/0.png",
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks"]


def test_classes_beside_masks_are_told_without_a_folder_for_masks_where_a_csv_or_json_is_asked_for(
    workspace: Path, bundle: str, tmp_path: Path, ask: Ask
) -> None:
    heads = (Head(target="kind"), Head(target="mask", task="segmentation", design="fcn"))
    variant, classes = Variant(backbone="squeezenet1_1", heads=heads), {"kind": ["cat", "dog"], "mask": ["0", "9"]}
    model, preprocess = build_model(variant, classes, None), preprocess_for(variant.backbone, 64, whole=True)
    both = str(save(tmp_path / "both", model=model, variant=variant, classes=classes, preprocess=preprocess, facts={}))
    image, table = str(draw(tmp_path / "a.png", (30, 20))), tmp_path / "told.csv"
    answer = ask(workspace, "predict", both, image, "--json", "--csv", str(table))
    assert answer.status == 0, answer.err
    assert answer.err.count("masks (mask) are not written: name a folder for them with --output FOLDER") == 1
    (row,) = answer.told["predictions"]
    assert row["kind"]["label"] in ("cat", "dog")
    assert row["mask"]["mask"] is None
    assert sum(row["mask"]["shares"].values()) == pytest.approx(1)
    assert table.read_text().splitlines()[1].startswith(f"{image},{row['kind']['label']},")
    refused = ask(workspace, "predict", both, image)
    assert (refused.status, "--output FOLDER, or ask for the other answers alone with --csv" in refused.err) == (2, True)
    alone = ask(workspace, "predict", bundle, image, "--json")
    assert alone.status == 2
    assert "--output FOLDER" in alone.err
    assert "the other answers" not in alone.err


def test_a_file_that_is_there_is_never_written_over(workspace: Path, bundle: str, tmp_path: Path, ask: Ask) -> None:
    draw(tmp_path / "in/a.png", (30, 20))
    own = draw(tmp_path / "in/b.png", (30, 20)).read_bytes()
    for output in (tmp_path / "in", tmp_path / "out"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/b.png").write_bytes(own)
        answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), "--output", str(output))
        assert answer.status == 2
        assert "there already" in answer.err
        assert "--output" in answer.err
        assert (output / "b.png").read_bytes() == own
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


def test_a_mask_that_cannot_be_written_is_told_by_its_own_cause(
    workspace: Path, bundle: str, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "in/a.png", (30, 20))
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Its answer is there, and no file can take another byte, as on a full disk.
    keep = prediction._keep
    monkeypatch.setattr(
        prediction, "_keep", lambda *answered: (resource.setrlimit(resource.RLIMIT_FSIZE, (0, largest[1])), keep(*answered))[1]
    )
    try:
        answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert answer.status == 1
    assert os.strerror(errno.EFBIG) in answer.err
    assert list((tmp_path / "out").iterdir()) == []


def test_one_bad_file_of_a_folder_costs_one_prediction(workspace: Path, bundle: str, tmp_path: Path, ask: Ask) -> None:
    for index in range(BATCH_SIZE + 3):
        draw(tmp_path / "in" / f"{index:02}.png", (16, 16))
    cut = tmp_path / f"in/{BATCH_SIZE + 1:02}.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "in/._00.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "in/notes.txt").write_text("x")
    os.mkfifo(tmp_path / "in/pipe.png")
    words = ("predict", bundle, str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    answer = ask(workspace, *words, "--json")
    assert answer.status == 1
    assert [Path(row["file"]).name for row in answer.told["unread"]] == [cut.name, "pipe.png"]
    assert len(answer.told["predictions"]) == BATCH_SIZE + 2
    listed = {row["mask"]["mask"] for row in answer.told["predictions"]}
    assert listed == {str(path) for path in (tmp_path / "out").iterdir()}, "no mask lies there unlisted"
    assert f"warning {cut}: does not decode" in answer.err.replace("\n", " ")
    assert "._00" not in answer.err
    assert "1 .txt" in answer.err


def test_a_bad_file_that_was_named_itself_is_refused_before_anything_is_written(
    workspace: Path, bundle: str, tmp_path: Path, ask: Ask
) -> None:
    draw(tmp_path / "in/a.png", (16, 16))
    (tmp_path / "bad.png").write_bytes(b"no")
    answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), str(tmp_path / "bad.png"), "--output", str(tmp_path / "out"))
    assert (answer.status, answer.out) == (2, "")
    assert "bad.png: is no image" in answer.err
    assert not (tmp_path / "out").exists()


def test_masks_inside_the_folder_that_is_read_are_not_read_as_images(
    workspace: Path, bundle: str, tmp_path: Path, ask: Ask
) -> None:
    draw(tmp_path / "in/a.png", (16, 16))
    draw(tmp_path / "in/masks/b.png", (16, 16))
    answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), "--output", str(tmp_path / "in/masks"), "--json")
    assert [Path(row["file"]).name for row in answer.told["predictions"]] == ["a.png"]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_tiff_is_predicted_as_its_twin_in_png(orientation: int, bundle: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(draw(tmp_path / "a.png", (40, 24))) as image:
        image.save(tmp_path / "t.tif", exif=exif)
        image.save(tmp_path / "p.png", exif=exif)
    with Image.open(tmp_path / "p.png") as twin:
        size = ImageOps.exif_transpose(twin).size
    tiff, png = (load(bundle).predict([tmp_path / name], 1)[0]["mask"] for name in ("t.tif", "p.png"))
    assert tiff.mask.shape == size[::-1]
    assert np.array_equal(tiff.mask, png.mask)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="kind"), Head(target="tags", task="multilabel")))
    classes = {"kind": ["cat", "dog"], "tags": ["indoor", "night"]}
    model, preprocess = build_model(variant, classes, None), preprocess_for(variant.backbone, 32)
    thresholds = {"tags": [0.0, 0.0]}
    folder = tmp_path_factory.mktemp("classifier") / "bundle"
    save(folder, model=model, variant=variant, classes=classes, preprocess=preprocess, facts={}, thresholds=thresholds)
    return str(folder)


def bomb(path: Path, side: int) -> Path:
    """A PNG of few bytes that says that it has side x side pixels, all of them black."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10**6)
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    blocks = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(blocks))
    return path


def test_a_csv_names_images_beside_it_and_bad_lines_cost_one_prediction_each(
    workspace: Path, classifier: str, tmp_path: Path, ask: Ask
) -> None:
    for index in range(BATCH_SIZE + 2):
        draw(tmp_path / "in/deep" / f"{index:02}.png", (16 + index, 16))
    bomb(tmp_path / "in/bomb.png", 12_000)
    bomb(tmp_path / "in/larger.png", 2_000_000)
    good = [f"deep/{index:02}.png" for index in range(BATCH_SIZE + 2)]
    others = [",empty", "deep,x", "bomb.png,x", "larger.png,x", "deep/00.png"]
    lines = ["path,note", "gone.png,x", *[f"{name},x" for name in good], *others]
    (tmp_path / "in/list.csv").write_text("\n".join(lines) + "\n")
    words = ("predict", classifier, str(tmp_path / "in/list.csv"), "--column", "path")
    answer = ask(workspace, *words, "--json", "--csv", str(tmp_path / "out.csv"))
    assert answer.status == 1, answer.err
    assert [row["file"] for row in answer.told["predictions"]] == [str(tmp_path / "in" / name) for name in good]
    unread = {Path(row["file"]).name: row["reason"] for row in answer.told["unread"]}
    assert list(unread) == ["gone.png", "list.csv line 37", "deep", "bomb.png", "larger.png", "list.csv line 41"]
    assert unread["list.csv line 37"] == "names no file in the column 'path'"
    assert unread["list.csv line 41"] == "has 1 cells for 2 columns"
    assert unread["gone.png"] == "there is no such file"
    assert unread["deep"] == "is no regular file"
    assert unread["bomb.png"].startswith("12000 x 12000 px are more than 100,000,000 pixels")
    assert "larger.png: does not decode" in answer.err.replace("\n", " ")
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    one_by_one = ask(workspace, "predict", classifier, *[str(tmp_path / "in" / name) for name in good[:3]], "--json").told
    for row, told, line in zip(one_by_one["predictions"], answer.told["predictions"][:3], written[1:4], strict=True):
        assert row["kind"]["label"] == told["kind"]["label"] == line["kind"]
        assert told["kind"]["probability"] == pytest.approx(row["kind"]["probability"], abs=1e-5)
        assert float(line["kind/probability"]) == pytest.approx(row["kind"]["probability"], abs=1e-5)
        assert line["tags"] == "indoor|night"
    gone, *later = unread.values()
    assert [line["error"] for line in written] == [gone, *[""] * len(good), *later]
    assert ask(workspace, *words, "--csv", str(tmp_path / "out.csv")).status == 2


def test_the_answers_to_a_csv_of_texts_have_the_order_of_its_lines(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    variant = Variant(backbone="textcnn", heads=(Head(target="kind"),), freeze="none")
    vocabulary, classes = learn_vocabulary(["a card was lost"], 16), {"kind": ["card", "loan"]}
    model, preprocess = build_model(variant, classes, None), preprocess_of(variant)
    made = {"model": model, "variant": variant, "classes": classes, "preprocess": preprocess, "facts": {}}
    save(tmp_path / "bundle", **made, vocabulary=vocabulary)
    (tmp_path / "q.csv").write_text('id,body\n7,a card was lost and lost\n8,""\n9,a card\n10\n11,lost\n')
    words = ("predict", str(tmp_path / "bundle"), str(tmp_path / "q.csv"), "--column", "body", "--csv", str(tmp_path / "out.csv"))
    answer = ask(workspace, *words, "--json")
    assert answer.status == 1, answer.err
    with (tmp_path / "out.csv").open(newline="") as file:
        written = [(line["file"].removeprefix(f"{tmp_path / 'q.csv'} line "), line["error"]) for line in csv.DictReader(file)]
    assert written == [("2", ""), ("3", "is empty"), ("4", ""), ("5", "has 1 cells for 2 columns"), ("6", "")]
    assert [Path(row["file"]).name for row in answer.told["unread"]] == ["q.csv line 3", "q.csv line 5"]


def test_a_csv_without_the_column_or_in_another_form_is_refused(
    workspace: Path, classifier: str, tmp_path: Path, ask: Ask
) -> None:
    draw(tmp_path / "a.png", (16, 16))
    for content, words in (
        (b"path,note\na.png,x\n", "has the column 'file' not; name that of the paths with --column: path, note"),
        (b"file,file\na.png,x\n", "has the column 'file' twice"),
        (b"file,note\n", "no lines under its header"),
        (b'file,note\na.png,"x\n', "not well formed"),
        ("file\nä.png\n".encode("latin-1"), "not a CSV file in UTF-8"),
    ):
        (tmp_path / "list.csv").write_bytes(content)
        answer = ask(workspace, "predict", classifier, str(tmp_path / "list.csv"))
        assert (answer.status, answer.out) == (2, "")
        assert words in answer.err
    (tmp_path / "list.csv").write_text("anything\na.png\n")
    assert ask(workspace, "predict", classifier, str(tmp_path / "list.csv")).status == 0, "of one column the name does not matter"


def test_large_images_are_read_a_few_at_a_time(
    workspace: Path, bundle: str, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(7):
        draw(tmp_path / "in" / f"{index}.png", (30, 20 + index))
    seen: list[int] = []
    read = prediction._read_batch
    monkeypatch.setattr(prediction, "MAX_BATCH_PIXELS", 1200)
    monkeypatch.setattr(prediction, "_read_batch", lambda made, batch: (seen.append(len(batch)), read(made, batch))[1])
    answer = ask(workspace, "predict", bundle, str(tmp_path / "in"), "--masks", str(tmp_path / "out"), "--json")
    assert seen == [2, 2, 2, 1]
    for row in answer.told["predictions"]:
        with Image.open(row["mask"]["mask"]) as mask, Image.open(row["file"]) as image:
            assert mask.size == image.size


def test_a_table_shows_a_long_texts_tags_in_a_few_lines_and_a_csv_holds_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, tags = ("Anna", *["sleeps"] * 17_000), ("B-person", *["O"] * 17_000)
    readings = Readings((Reading("1", {"tags": TagsAnswer(words, tags, ())}),))
    answers.show(readings, "m@1", as_json=False)
    shown = capsys.readouterr().out
    assert "Anna/B-person sleeps" in shown
    assert "sleeps ..." in " ".join(shown.replace("│", " ").split())
    assert len(shown.splitlines()) < 20
    answers.write_csv(readings, tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text().count(" O") == 17_000
    answers.show(readings, "m@1", as_json=True)
    assert capsys.readouterr().out.count("sleeps") == 17_000
