"""A table's cells are what it says, by their type and to the letter; one that is not well formed is refused by its row."""

from __future__ import annotations

import csv
import datetime
import io
import tempfile
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import AskedWrongly
from flows.landing import ingest
from flows.landing.tables import read_table
from flows.manifest import parse
from tests.flows.test_landing import class_folders, draw, samples


def csv_table(folder: Path, content: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "labels.csv"


def parquet_table(folder: Path, **columns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), folder / "labels.parquet")
    return folder / "labels.parquet"


def cells(path: Path, target: str) -> list[str | None]:
    return [row.cells[target] for row in read_table(path).rows]


ILL_FORMED = {
    "a quote that never closes": ('file,x\n0.png,a\n1.png,"b\n2.png,a\n', "row 3 is not well formed"),
    "a quote that closes too late": ('file,x\n0.png,a\n1.png,"b\n2.png,a\n3.png,"c"\n', "row 3 is not well formed"),
    "letters after a closing quote": ('file,x\n0.png,"a"b\n', "row 2 is not well formed"),
    "a quote in the middle of a cell": ('file,x\n0.png,a\n1.png,b"c\n', 'row 3 has a stray "'),
    "a blank before the quotes": ('file,x\n0.png, "a"\n', 'row 2 has a stray "'),
    "a line break in a label": ('file,x\n0.png,"a\nb"\n1.png,c\n', "row 2 holds a line break in the column 'x'"),
    "a line break at a label's end": ('file,x\n0.png,"a\n"\n1.png,c\n', "row 2 holds a line break in the column 'x'"),
    "a line separator in a label": ("file,x\n0.png,a\u2028b\n", "row 2 holds a line break"),
    "a line break in a file name": ('file,x\n0.png,a\n"1\r\n.png",c\n', "row 3 holds a line break in the column 'file'"),
    "a NUL byte": ("file,x\n0.png,a\0b\n", "row 2 holds a NUL byte"),
    "a byte order mark in the middle": ("file,x\n0.png,a\n\ufeff1.png,b\n", "row 3 holds an invisible byte order mark"),
    "too few cells": ("file,x,y\n0.png,a,b\n\n1.png,a\n", "row 4 has 2 cells for 3 columns"),
    "too many cells": ("file,x\n0.png,a\n1.png,a,b\n", "row 3 has 3 cells for 2 columns"),
    "semicolons": ("file;x\n0.png;a\n", "parted by semicolons, not by commas"),
    "tabs": ("file\tx\n0.png\ta\n", "parted by tabs, not by commas"),
    "a column twice": ("file,x,x \n0.png,a,b\n", "has the column 'x' twice"),
    "a column twice by look": ("file,caf\u00e9,cafe\u0301\n0.png,a,b\n", "has the column 'caf\u00e9' twice"),
    "a header alone": ("file,x\n", "no lines under its header"),
    "UTF-16": ("file,x\n0.png,a\n".encode("utf-16"), "in UTF-16; save it as 'CSV UTF-8'"),
    "UTF-16 without a mark": ("file,x\n0.png,a\n".encode("utf-16-le"), "holds a NUL byte"),
    "latin-1": ("file,x\n0.png,a\n1.png,\xe9\n".encode("latin-1"), "not a CSV file in UTF-8.*line 3"),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_a_table_that_is_not_well_formed_is_refused_with_its_row(case: str, tmp_path: Path) -> None:
    content, words = ILL_FORMED[case]
    with pytest.raises(AskedWrongly, match=words):
        read_table(csv_table(tmp_path, content))


def test_one_stray_quote_is_refused_and_no_version_of_the_data_is_made(tmp_path: Path) -> None:
    lines = ["file,label"] + [f"{i}.png,{'ab'[i % 2]}" for i in range(24)]
    lines[16] = '15.png,"b'
    for index in range(24):
        draw(tmp_path / "source/images" / f"{index}.png", index)
    csv_table(tmp_path / "source", "\n".join(lines) + "\n")
    with pytest.raises(AskedWrongly, match="row 17"):
        ingest(tmp_path / "source", tmp_path / "ws/data")
    assert not (tmp_path / "ws/data").exists()


WORD = st.text(st.sampled_from('ab ,"é|'), min_size=1, max_size=5).filter(lambda text: text.strip() == text)


@given(
    st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6, unique_by=lambda row: row[0]), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_a_well_formed_table_reads_as_the_csv_module_wrote_it(rows: list[tuple[str, str]], line_end: str) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([("file", "x"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        found = read_table(csv_table(Path(folder), "\ufeff" + text.getvalue())).rows
    assert [(row.file, row.cells["x"]) for row in found] == [(a, unicodedata.normalize("NFC", b)) for a, b in rows]


def test_lists_of_text_are_sets_of_labels(tmp_path: Path) -> None:
    lists = [["night", "indoor"], ["day"], [], None]
    files = [f"{i}.png" for i in range(4)]
    expected = ["night|indoor", "day", "|", None]
    words = pa.dictionary(pa.int32(), pa.string())
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary())):
        assert cells(parquet_table(tmp_path, file=files, tags=pa.array(lists, kind)), "tags") == expected
    coded = pa.ListArray.from_arrays([0, 2, 3], pa.array(["night", "indoor", "day"]).dictionary_encode())
    assert coded.type.value_type == words
    assert cells(parquet_table(tmp_path, file=files[:2], tags=coded), "tags") == expected[:2]


def test_each_type_of_a_column_gives_its_own_text(tmp_path: Path) -> None:
    path = parquet_table(
        tmp_path,
        file=pa.array(["0.png", "1.png", "2.png"], pa.large_string()),
        text=pa.array(["a", None, "b"], pa.string_view()),
        coded=pa.array(["a", "b", "a"]).dictionary_encode(),
        raw=pa.array(["é".encode(), None, b"b"], pa.binary()),
        fixed=pa.array([b"xy", b"zz", None], pa.binary(2)),
        whole=pa.array([0, 1, None], pa.int64()),
        gaps=pa.array([0.0, float("nan"), 1.0], pa.float64()),
        fractions=pa.array([0.5, None, 1.0], pa.float64()),
        decimals=pa.array([Decimal("2"), None, Decimal("3")], pa.decimal128(5, 0)),
        cents=pa.array([Decimal("2.00"), None, Decimal("3.50")], pa.decimal128(5, 2)),
        flags=pa.array([True, False, None]),
        nothing=pa.nulls(3),
    )
    found = {name: cells(path, name) for name in read_table(path).targets}
    assert found == {
        "text": ["a", None, "b"],
        "coded": ["a", "b", "a"],
        "raw": ["é", None, "b"],
        "fixed": ["xy", "zz", None],
        "whole": ["0", "1", None],
        "gaps": ["0", None, "1"],
        "fractions": ["0.5", None, "1.0"],
        "decimals": ["2", None, "3"],
        "cents": ["2.00", None, "3.50"],
        "flags": ["True", "False", None],
        "nothing": [None, None, None],
    }


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([{"a": 1}]), "'odd' holds struct.*allowed: text"),
        (pa.array([[{"a": 1}]]), "'odd' holds list.*struct"),
        (pa.array([[1, 2]]), "'odd' holds list.*int64"),
        (pa.array([[["a"]]]), "'odd' holds list"),
        (pa.array([datetime.date(2024, 1, 2)]), "'odd' holds date32"),
        (pa.array([datetime.datetime(2024, 1, 2)]), "'odd' holds timestamp"),
        (pa.array([datetime.time(1)]), "'odd' holds time"),
        (pa.array([datetime.timedelta(1)]), "'odd' holds duration"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "'odd' holds map"),
        (pa.array([b"\xff\xfe"]), "'odd' holds bytes that are no text in UTF-8"),
        (pa.array([["a", None]]), "'odd' holds the list .* which has a gap"),
        (pa.array([["a|b"]]), "'odd' holds the label 'a|b' in a list"),
        (pa.array(["a\nb"]), "row 1 holds a line break in the column 'odd'"),
    ],
)
def test_what_is_neither_text_nor_number_is_refused_by_its_column(column: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match=words):
        read_table(parquet_table(tmp_path, file=["0.png"], odd=column))


def test_the_index_that_pandas_adds_is_no_target(tmp_path: Path) -> None:
    index = pa.array([datetime.datetime(2024, 1, 2)] * 2)
    path = parquet_table(tmp_path, file=["0.png", "1.png"], x=["a", "b"], __index_level_0__=index)
    assert read_table(path).targets == ("x",)
    path = csv_table(tmp_path, "Unnamed: 0,file,x\n0,0.png,a\n1,1.png,b\n")
    table = read_table(path)
    assert table.targets == ("x",)
    assert "Unnamed: 0" in table.warnings[0]


def test_one_name_is_one_class_from_tables_and_from_folders(tmp_path: Path) -> None:
    letter, accent = "caf\u00e9", "cafe\u0301"
    lines = [f"{i}.png,{(letter, accent, 'tea')[i % 3]},{(letter, accent)[i % 2]}" for i in range(24)]
    for index in range(24):
        draw(tmp_path / "table/images" / f"{index}.png", index)
    csv_table(tmp_path / "table", "file,drink,group\n" + "\n".join(lines))
    ingest(tmp_path / "table", tmp_path / "a/data")
    found = samples(tmp_path / "a/data").values()
    assert {sample.labels["drink"] for sample in found} == {letter, "tea"}
    assert {sample.group for sample in found} == {letter}
    class_folders(tmp_path / "folders", classes=(letter, accent, "tea"))
    ingest(tmp_path / "folders", tmp_path / "b/data")
    assert len(samples(tmp_path / "b/data")) == 60
    assert {sample.labels["label"] for sample in samples(tmp_path / "b/data").values()} == {letter, "tea"}


def test_labels_of_an_earlier_ingest_join_the_class_that_looks_like_theirs(tmp_path: Path) -> None:
    data = tmp_path / "ws/data"
    ingest(class_folders(tmp_path / "first", classes=("caf\u00e9", "tea")), data)
    manifest = data / "manifest.csv"
    text = manifest.read_text()
    # As an ingest wrote it that compared names byte by byte.
    rows = [sample.file for sample in parse(text) if sample.labels["label"] == "caf\u00e9"]
    assert len(rows) == 20
    manifest.write_text(text.replace(",caf\u00e9\n", ",cafe\u0301\n"))
    ingest(class_folders(tmp_path / "second", classes=("caf\u00e9", "tea"), first=500), data)
    assert {sample.labels["label"] for sample in samples(data).values()} == {"caf\u00e9", "tea"}


def test_a_table_finds_its_files_under_either_form_of_their_names(tmp_path: Path) -> None:
    letter, accent = "\u00e9", "e\u0301"
    for index in range(24):
        draw(tmp_path / "source/images" / f"{accent if index % 2 else letter}{index}.png", index)
    lines = [f"{letter if index % 2 else accent}{index}.png,{'ab'[index % 3 % 2]}" for index in range(24)]
    csv_table(tmp_path / "source", "file,x\n" + "\n".join(lines))
    report = ingest(tmp_path / "source", tmp_path / "ws/data")
    assert (report.num_samples, report.quarantined) == (24, ())


def test_a_picture_and_its_mask_are_a_pair_under_either_form_of_their_names(tmp_path: Path) -> None:
    for index in range(24):
        draw(tmp_path / "source/images" / f"\u00e9{index}.png", index)
        draw(tmp_path / "source/masks" / f"e\u0301{index}.png", index % 2, mode="L")
    ingest(tmp_path / "source", tmp_path / "ws/data")
    assert all(sample.labels["mask"] for sample in samples(tmp_path / "ws/data").values())
