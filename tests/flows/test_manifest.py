"""The manifest as text and as values."""

from __future__ import annotations

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.errors import AskedWrongly
from flows.manifest import (
    _LINES,
    class_counts,
    is_mask_target,
    mask_files,
    parse,
    parse_masks,
    render,
    render_masks,
    split_counts,
)
from flows.records import SPLITS, Mask, Sample
from heads.tasks.names import split_labels

# A busy machine is no fault of the code.
UNHURRIED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
CELL = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=6))
FILES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
SAMPLES = st.lists(
    st.builds(
        Sample,
        digest=st.text("0123456789abcdef", min_size=32, max_size=32),
        file=FILES.map("images/{}".format),
        split=st.sampled_from(SPLITS),
        labels=st.fixed_dictionaries({"breed": CELL, "mask": CELL}),
        group=CELL,
    ),
    unique_by=lambda sample: sample.file,
)


@UNHURRIED
@given(SAMPLES)
def test_what_is_written_is_read_back(samples: list[Sample]) -> None:
    assert parse(render(samples)) == tuple(sorted(samples, key=lambda sample: sample.file))


@UNHURRIED
@given(SAMPLES)
def test_the_order_of_samples_does_not_change_a_byte(samples: list[Sample]) -> None:
    assert render(samples) == render(reversed(samples))


PIXELS = st.dictionaries(st.integers(0, 2**16 - 1), st.integers(1, 10**8), min_size=1, max_size=5)


@UNHURRIED
@given(
    st.dictionaries(FILES.map("masks/{}".format), st.builds(Mask, st.text("0123456789abcdef", min_size=32, max_size=32), PIXELS))
)
def test_a_table_of_masks_is_read_back_whatever_its_order(masks: dict[str, Mask]) -> None:
    text = render_masks(masks)
    assert parse_masks(text) == masks
    turned = {file: Mask(m.digest, dict(reversed(m.pixels.items()))) for file, m in reversed(masks.items())}
    assert render_masks(turned) == text


def test_a_line_of_the_mask_table_gives_pixels_by_value_ascending() -> None:
    assert render_masks({"masks/a.png": Mask("a" * 32, {3: 400, 0: 12345})}) == (
        f"file,digest,pixels\nmasks/a.png,{'a' * 32},0:12345 3:400\n"
    )
    for text in ("file,digest\na,b\n", "file,digest,pixels\na,b,1:x\n", "file,digest,pixels\na,b\n"):
        with pytest.raises(AskedWrongly, match=r"masks\.csv is damaged"):
            parse_masks(text)


def test_labels_of_a_cell_are_each_told_once_without_blanks() -> None:
    assert split_labels("b| a |b||") == ("a", "b")
    assert split_labels("|") == ()


def test_the_text_is_plain_csv_without_a_group_column_where_there_are_no_groups() -> None:
    rows = [Sample("b" * 32, "images/b.jpg", "val", {"label": None}), Sample("a" * 32, "images/a.jpg", "train", {"label": "x,y"})]
    assert render(rows) == f'digest,file,split,label\n{"a" * 32},images/a.jpg,train,"x,y"\n{"b" * 32},images/b.jpg,val,\n'


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "digest,file,split,label\na,images/a.jpg,holdout,x\n"])
def test_a_damaged_manifest_is_refused(text: str) -> None:
    with pytest.raises(AskedWrongly, match=r"manifest\.csv"):
        parse(text)


def test_counts_name_every_split_and_leave_masks_out() -> None:
    labels = {"label": "a", "mask": "masks/1.png"}
    rows = [Sample("1" * 32, "images/1.png", "train", labels), Sample("2" * 32, "images/2.png", "test", labels | {"mask": None})]
    assert split_counts(rows) == {"train": 1, "val": 0, "test": 1}
    assert class_counts(rows) == {"label": {"a": {"train": 1, "val": 0, "test": 1}}}
    assert mask_files(rows) == {"masks/1.png"}
    assert is_mask_target(rows, "mask")
    assert not is_mask_target(rows, "label")


@pytest.mark.parametrize("text", ["", "a,b\n", "a\rb\r\nc\n\n\r", 'x,"q\r\nr\n"\u2028s\x0b,y\nlast', "\n", "no end"])
def test_a_manifest_is_split_into_lines_as_a_text_file_is(text: str) -> None:
    assert [line[0] for line in _LINES.finditer(text)] == list(io.StringIO(text, newline=""))


def test_equal_labels_splits_and_groups_of_a_manifest_are_held_once() -> None:
    rows = [Sample(f"{n:032x}", f"images/{n}.jpg", "train", {"label": "ab"[n % 2]}, f"g{n // 4}") for n in range(8)]
    read = parse(render(rows))
    assert read == tuple(rows)
    assert len({id(sample.labels) for sample in read}) == 2
    assert len({id(sample.split) for sample in read}) == 1
    assert len({id(sample.group) for sample in read}) == 2
