"""Texts brought into a data folder: tables with a column of them, class folders, and what is no text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flows.errors import AskedWrongly
from flows.landing import ingest
from flows.plan import check_data, parse_plan
from flows.records import DataVersion
from tests.flows.test_landing import class_folders, data, samples, tree

__all__ = ["data"]
BANKING = Path(__file__).parents[2].parent / "shared" / "data" / "banking77"


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def write_table(folder: Path, *rows: str, header: str = "text,intent,split") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def rows_of(count: int, split: str = "train") -> list[str]:
    return [f"text number {number},{('pay', 'ask')[number % 2]},{split}" for number in range(count)]


def test_a_table_of_texts_comes_in_as_files_named_after_their_bytes(tmp_path: Path, data: Path) -> None:
    decomposed, lines = "cafe\u0301 au lait,ask,test", '"two\r\nlines",pay,test'
    report = ingest(write_table(tmp_path / "source", *rows_of(20), decomposed, lines), data)
    assert (report.added, report.num_samples, report.quarantined) == (22, 22, ())
    found = samples(data)
    for text, label in (("café au lait", "ask"), ("two\nlines", "pay")):
        sample = found[f"texts/{md5(text)}.txt"]
        assert (sample.digest, sample.split, sample.labels) == (md5(text), "test", {"intent": label})
        assert (data / sample.file).read_bytes() == text.encode()
    before = tree(data)
    again = ingest(tmp_path / "source", data)
    assert (again.unchanged, again.added, again.updated) == (22, 0, 0)
    assert tree(data) == before


def test_a_label_that_changes_updates_its_text_and_new_lines_are_added(tmp_path: Path, data: Path) -> None:
    ingest(write_table(tmp_path / "source", *rows_of(20)), data)
    changed = ["text number 0,ask,train", *rows_of(21)[1:]]
    report = ingest(write_table(tmp_path / "source", *changed), data)
    assert (report.added, report.updated, report.unchanged) == (1, 1, 19)


def test_equal_texts_never_straddle_two_splits_and_a_contradiction_is_told(tmp_path: Path, data: Path) -> None:
    twice = ["text number 3,ask,test", "text number 4,ask,train"]
    report = ingest(write_table(tmp_path / "source", *rows_of(20), *twice), data)
    of_three = [sample for sample in samples(data).values() if sample.digest == md5("text number 3")]
    assert [sample.split for sample in of_three] == ["test", "test"]
    assert any("has the bytes of another one but a different label" in warning for warning in report.warnings)


@pytest.mark.parametrize("layout", ["plain", "splits"])
def test_folders_of_txt_files_are_classes(layout: str, tmp_path: Path, data: Path) -> None:
    for number in range(40):
        folder = (
            tmp_path / "source" / (("train", "test")[number % 4 == 0] if layout == "splits" else "") / ("ham", "spam")[number % 2]
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_bytes(f"\ufeffmail {number}\r\nend\r\n".encode())
    (tmp_path / "source" / "README.txt").write_text("about")
    report = ingest(tmp_path / "source", data)
    assert (report.added, report.warnings) == (40, ()) or layout == "plain"
    found = samples(data)
    place = "texts/train/spam/1.txt" if layout == "splits" else "texts/spam/1.txt"
    assert (found[place].labels, found[place].digest) == ({"label": "spam"}, md5("mail 1\nend"))
    assert (data / place).read_text() == "mail 1\nend"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ("train/ham train/spam holdout/ham", "which split is the folder 'holdout'"),
        ("train/ham train/spam test/ham spam", "has the class 'spam' both as a folder of its own and in a split"),
        (
            "train/ham train/spam train/unsup test/ham test/spam",
            r"'unsup', named as splits .* \(train/cat/\*.txt\), and take out",
        ),
        ("train test", r"'test', 'train', named as splits are, .* in a table labels.csv \(columns text and label\)"),
    ],
)
def test_folders_of_texts_that_are_no_clear_split_are_refused_like_those_of_images(
    folders: str, words: str, tmp_path: Path, data: Path
) -> None:
    for folder in folders.split():
        (tmp_path / "source" / folder).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "source" / folder / f"{number}.txt").write_text(f"mail {folder} {number}")
    with pytest.raises(AskedWrongly, match=words):
        ingest(tmp_path / "source", data)
    assert tree(data) == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("ham/x/{}.txt spam/y/{}.txt", r"has 18 texts, e.g. ham/x/0.txt, where no folder tells their classes: .* <class>/\*.txt"),
        ("{}.txt", "has 9 texts, e.g. 0.txt, where no folder tells"),
        ("archive/ham/{}.txt archive/spam/{}.txt", "All lie under 'archive': try that folder"),
        (
            "ham/{}.eml spam/{}.eml",
            r"only 18 files \(18 .eml\); .*If 'ham/0.eml' is a text, let its name end in .txt, and those of its like",
        ),
        ("ham/{} spam/{}", "If 'ham/0' is a text, let its name end in .txt"),
        ("train/ham/{}.md train/spam/{}.md", "If 'train/ham/0.md' is a text, let its name end in .txt"),
    ],
)
def test_texts_that_no_folder_or_ending_tells_are_refused_with_what_to_do(
    files: str, words: str, tmp_path: Path, data: Path
) -> None:
    for number in range(9):
        for file in files.split():
            path = tmp_path / "source" / file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"Subject: caf\u00e9\n\nmail {file} {number}\n".encode("latin-1"))
    with pytest.raises(AskedWrongly, match=words):
        ingest(tmp_path / "source", data)
    assert tree(data) == {}


def test_files_that_hold_no_text_and_papers_get_no_advice_on_texts(tmp_path: Path, data: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "film.mp4").write_bytes(b"\0\0\0 ftypmp42")
    (tmp_path / "source" / "README.txt").write_text("about")
    with pytest.raises(AskedWrongly, match="is empty: it holds no image and no text, only 2 files") as told:
        ingest(tmp_path / "source", data)
    assert "let its name" not in str(told.value)


def test_what_is_no_text_is_set_aside_with_a_reason(tmp_path: Path, data: Path) -> None:
    for number in range(40):
        folder = tmp_path / "source" / ("ham", "spam")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"mail {number}")
    (tmp_path / "source" / "ham" / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "source" / "ham" / "b.txt").write_bytes(b"  \n")
    report = ingest(tmp_path / "source", data, max_bad_share=0.1)
    reasons = dict(report.quarantined)
    assert reasons["ham/a.txt"].startswith("is no text in UTF-8")
    assert reasons["ham/b.txt"] == "is empty"
    assert report.num_samples == 40


def test_an_empty_text_costs_its_line_and_a_very_long_one_comes_in(tmp_path: Path, data: Path) -> None:
    report = ingest(write_table(tmp_path / "source", *rows_of(30), ",pay,train", f"{'long ' * 200_000},ask,train"), data)
    assert report.quarantined == (("row 32.txt", "is empty"),)
    assert report.num_samples == 31


def write_tables(folder: Path, header: str = "text,intent", **rows: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def of(word: str, count: int) -> list[str]:
    return [f"{word} number {number},{('pay', 'ask')[number % 2]}" for number in range(count)]


def test_tables_named_as_splits_are_one_table_whose_files_say_the_split(tmp_path: Path, data: Path) -> None:
    source = write_tables(tmp_path / "source", train=[*of("a", 200), ",ask"], dev=[*of("b", 20), ",pay"], test=of("c", 20))
    report = ingest(source, data)
    assert (report.num_samples, report.warnings) == (240, ())
    assert [name for name, _ in report.quarantined] == ["dev.csv row 22.txt", "train.csv row 202.txt"]
    found = {sample.digest: sample.split for sample in samples(data).values()}
    assert [found[md5(f"{word} number 1")] for word in "abc"] == ["train", "val", "test"]
    assert ingest(source, data).unchanged == 240
    # The cell of a row goes before the name of its file, and columns may stand in another order.
    (source / "dev.csv").write_text("split,intent,text\ntest,pay,b number 0\n,ask,b number 1\n")
    (source / "train.csv").rename(source / "train-00000-of-00001.csv")
    ingest(source, data)
    found = {sample.digest: sample.split for sample in samples(data).values()}
    assert [found[md5(f"b number {number}")] for number in range(2)] == ["test", "val"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"train": of("a", 20), "more": of("b", 20)},
            r"which split is the file 'more.csv'. Others say theirs, as 'train.csv' does",
        ),
        (
            {"reviews": of("a", 20)},
            r"is empty: .* If reviews.csv is a table .*, write it as labels.csv.* as train.csv, dev.csv or",
        ),
        ({"train": [], "test": of("b", 20)}, r"train.csv has no lines under its header"),
    ],
)
def test_tables_that_say_no_split_or_nothing_are_refused_with_what_to_do(
    files: dict[str, list[str]], words: str, tmp_path: Path, data: Path
) -> None:
    with pytest.raises(AskedWrongly, match=words):
        ingest(write_tables(tmp_path / "source", **files), data)
    assert tree(data) == {}


def test_tables_of_splits_must_have_the_same_targets_and_hold_texts(tmp_path: Path, data: Path) -> None:
    source = write_tables(tmp_path / "source", train=of("a", 20))
    write_tables(source, "text,id", test=of("b", 20))
    with pytest.raises(
        AskedWrongly, match=r"test.csv has the targets 'id', and train.csv 'intent'; give all of them the same columns"
    ):
        ingest(source, data)
    write_tables(source, "file,intent", train=of("a", 20), test=of("b", 20))
    with pytest.raises(AskedWrongly, match=r"test.csv names files in its column 'file', and the source holds no image"):
        ingest(source, data)
    assert tree(data) == {}


def test_a_table_without_files_and_texts_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(AskedWrongly, match="has no column 'file' or 'text'"):
        ingest(write_table(tmp_path / "source", "a,b,train", header="words,intent,split"), data)


def test_beside_files_a_column_text_is_a_target_as_it_was_before_there_were_texts(tmp_path: Path, data: Path) -> None:
    source = class_folders(tmp_path / "images")
    files = sorted(file.relative_to(source) for file in source.rglob("*.png"))
    write_table(source, *(f"{file},{file.parent.name} seen" for file in files), header="file,text")
    ingest(source, data)
    assert {sample.labels["text"] for sample in samples(data).values()} == {f"{file.parent.name} seen" for file in files}


def test_a_workspace_holds_images_or_texts(tmp_path: Path, data: Path) -> None:
    ingest(class_folders(tmp_path / "images"), data)
    before = tree(data)
    with pytest.raises(AskedWrongly, match="the source holds texts, and the workspace's data images: a data set is of one kind"):
        ingest(write_table(tmp_path / "texts", *rows_of(20)), data)
    assert tree(data) == before


def test_a_plan_of_images_on_texts_is_refused_with_what_reads_them(tmp_path: Path, data: Path) -> None:
    ingest(write_table(tmp_path / "source", *rows_of(40), *rows_of(60, "test")[40:]), data)
    version = DataVersion("d", "r", tuple(samples(data).values()), data, ())
    words = "backbones: resnet18 reads images, and the data set holds texts; allowed: bert, transformer, textcnn"
    with pytest.raises(AskedWrongly, match=words):
        check_data(parse_plan({"name": "a", "backbones": ["resnet18"]}), version)
    check_data(parse_plan({"name": "a", "backbones": ["textcnn"]}), version)
    with pytest.raises(AskedWrongly, match="backbone bert has the size and the words of its weights, and weights is 'none'"):
        parse_plan({"name": "a", "backbones": ["bert"]})
    for named in ("champion", "s3://bucket/encoder.pth"):
        with pytest.raises(AskedWrongly, match=f"weights is '{named}'; give a folder with config.json"):
            parse_plan({"name": "a", "backbones": ["bert"], "weights": named})
    with pytest.raises(AskedWrongly, match=r"lstm learns its words from the training texts, and weights is './encoder'"):
        parse_plan({"name": "a", "backbones": ["lstm"], "weights": "./encoder"})


@pytest.mark.skipif(not BANKING.is_dir(), reason="needs the set beside the checkout")
def test_a_real_set_of_texts_comes_in_whole(data: Path) -> None:
    report = ingest(BANKING, data)
    assert (report.added, report.quarantined) == (13083, ())
    found = list(samples(data).values())
    assert len({sample.labels["intent"] for sample in found}) == 77
    by_split = {split: {s.digest for s in found if s.split == split} for split in ("train", "val", "test")}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & by_split["test"]
    assert sum(sample.split == "test" for sample in found) >= 3080
