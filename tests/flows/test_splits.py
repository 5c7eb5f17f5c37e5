"""Splits: given ones kept, the rest carved by hash, stable as the data grows."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.landing.ids import leave_out_ids
from flows.landing.split_units import MIN_TRAIN, Unsettled
from flows.landing.splits import settle

# A busy machine is no fault of the code.
UNHURRIED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
CLASSES = st.sampled_from("abc").map(lambda name: frozenset({("label", name)}))
GROUPS = st.one_of(st.none(), st.sampled_from([f"g{number}" for number in range(12)]))
GIVEN = st.sampled_from([None, "train", "val", "test"])
DIGESTS = st.integers(0, 200).map("{:032x}".format)
ANY_ROWS = st.lists(st.builds(Unsettled, digest=DIGESTS, given=GIVEN, group=GROUPS, classes=CLASSES), max_size=80)
PLAIN_ROWS = st.lists(st.builds(Unsettled, digest=DIGESTS, group=GROUPS, classes=CLASSES), max_size=80)


def numbered(count: int, name: str = "a", first: int = 0, **said: str | None) -> list[Unsettled]:
    return [Unsettled(f"{first + i:032x}", classes=frozenset({("label", name)}), **said) for i in range(count)]


def places(rows: list[Unsettled], key: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, settle(rows)[0], strict=True):
        found[getattr(row, key)].add(split)
    return found


@UNHURRIED
@given(ANY_ROWS)
def test_identical_bytes_never_straddle_two_splits(rows: list[Unsettled]) -> None:
    assert all(len(splits) == 1 for splits in places(rows, "digest").values())


@UNHURRIED
@given(PLAIN_ROWS)
def test_a_carved_group_stays_whole(rows: list[Unsettled]) -> None:
    assert all(len(splits) == 1 for group, splits in places(rows, "group").items() if group)


@UNHURRIED
@given(ANY_ROWS, st.randoms())
def test_the_order_of_samples_changes_nothing(rows: list[Unsettled], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    there = Counter(zip(rows, settle(rows)[0], strict=True))
    assert Counter(zip(mixed, settle(mixed)[0], strict=True)) == there


@UNHURRIED
@given(ANY_ROWS, PLAIN_ROWS)
def test_a_sample_keeps_its_split_as_the_data_grows(rows: list[Unsettled], more: list[Unsettled]) -> None:
    first = settle(rows)[0]
    settled = [replace(row, earlier=split) for row, split in zip(rows, first, strict=True)]
    held = {row.digest: row.earlier for row in settled}
    grown = settle([*settled, *(replace(row, earlier=held.get(row.digest)) for row in more)])[0]
    assert grown[: len(rows)] == first


@UNHURRIED
@given(ANY_ROWS)
def test_given_holdouts_are_kept_or_made_safer_and_never_trained_on(rows: list[Unsettled]) -> None:
    for row, split in zip(rows, settle(rows)[0], strict=True):
        if row.given in ("val", "test"):
            assert split in (row.given, "test")


@UNHURRIED
@given(PLAIN_ROWS)
def test_carving_leaves_each_class_enough_to_train_on(rows: list[Unsettled]) -> None:
    train: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for row, split in zip(rows, settle(rows)[0], strict=True):
        name = next(iter(row.classes))[1]
        every[name] += 1
        train[name] += split == "train"
    assert all(train[name] >= min(MIN_TRAIN, every[name]) for name in every)


def test_about_fifteen_percent_go_to_each_of_val_and_test() -> None:
    shares = Counter(settle(numbered(4000))[0])
    assert 540 < shares["val"] < 660
    assert 540 < shares["test"] < 660


def test_only_what_the_source_lacks_is_carved() -> None:
    rows = numbered(400, given="train") + numbered(50, first=1000, given="test")
    splits = settle(rows)[0]
    assert set(splits[:400]) == {"train", "val"}
    assert set(splits[400:]) == {"test"}
    full = rows + numbered(50, first=2000, given="val")
    assert settle(full)[0] == tuple(row.given for row in full)


def test_a_digest_goes_to_the_same_split_whatever_else_comes() -> None:
    small, large = settle(numbered(300))[0], settle(numbered(600))[0]
    assert large[:300] == small


def test_a_small_class_stays_in_train_and_only_its_later_samples_may_be_carved() -> None:
    rows = numbered(100) + numbered(6, "b", first=500)
    splits, warnings = settle(rows)
    assert set(splits[100:]) == {"train"}
    assert warnings == ("class 'b' of label is too small to be split (6 samples): all of it stays in train",)
    settled = [replace(row, earlier=split) for row, split in zip(rows, splits, strict=True)]
    grown, warnings = settle(settled + numbered(60, "b", first=600))
    assert grown[:106] == splits
    assert set(grown[106:]) == {"train", "val", "test"}
    assert warnings == ()


def test_many_classes_too_small_are_told_in_one_line_with_three_of_them() -> None:
    rows = [row for label in range(300) for row in numbered(4, str(label), first=10 * label)]
    splits, warnings = settle(rows)
    assert set(splits) == {"train"}
    told, *empty = warnings
    assert told == (
        "300 classes are too small to be split: all of them stay in train, e.g. '0' of label (4 samples), '1' of label "
        "(4 samples), '10' of label (4 samples)"
    )
    assert len(empty) == 2


def test_a_class_that_chance_left_out_of_a_split_is_put_into_it() -> None:
    for first in range(0, 4000, 100):
        splits = settle(numbered(9, first=first) + numbered(9, "b", first=first + 50))[0]
        for part in (splits[:9], splits[9:]):
            spare = part.count("train") > MIN_TRAIN
            assert part == ("train",) * 9 or not spare or set(part) == {"train", "val", "test"}


def test_a_class_that_can_be_split_is_split_however_chance_put_it() -> None:
    others = numbered(100, first=9_000)
    for count in (7, 8, 10):
        for first in range(0, 4000, 100):
            splits, warnings = settle(numbered(count, "b", first=first) + others)
            assert Counter(splits[:count]) >= Counter(train=MIN_TRAIN, val=1, test=1)
            assert not warnings


def test_samples_with_rare_labels_are_held_out_as_others_are() -> None:
    names, random = [f"label{number}" for number in range(800)], Random(1)
    chances = [1 / (number + 3) for number in range(800)]
    sets = [frozenset(("tags", name) for name in random.choices(names, chances, k=random.randint(1, 7))) for _ in range(1500)]
    rows = [Unsettled(f"{number:032x}", classes=classes) for number, classes in enumerate(sets)]
    splits, (warning, *_) = settle(rows, sets=("tags",))
    train = [len(classes) for classes, split in zip(sets, splits, strict=True) if split == "train"]
    held = [len(classes) for classes, split in zip(sets, splits, strict=True) if split != "train"]
    assert sum(held) / len(held) > 0.9 * sum(train) / len(train), "labels a sample: 0.77 if all with a rare one stay in train"
    assert 0.24 < len(held) / len(rows) < 0.36
    assert {name for each in sets for name in each} == {
        name for each, split in zip(sets, splits, strict=True) if split == "train" for name in each
    }
    assert "labels have too few samples for train, val and test: none or few of them are held out" in warning


def test_new_members_follow_their_group() -> None:
    rows = [Unsettled(f"{number:032x}", earlier="test" if number == 0 else None, group="one") for number in range(4)]
    assert settle(rows + numbered(50, first=900, earlier="train"))[0][:4] == ("test",) * 4


def test_a_set_too_small_to_be_split_says_what_is_empty() -> None:
    splits, warnings = settle(numbered(3))
    assert set(splits) == {"train"}
    assert [warning for warning in warnings if "no sample is in" in warning] == list(warnings[-2:])


def test_a_conflict_of_given_splits_goes_to_the_most_protected_and_is_told() -> None:
    one = "f" * 32
    rows = [
        Unsettled(one, given="train"),
        Unsettled(one, given="val"),
        *numbered(9, given="train"),
        *numbered(9, first=50, given="test"),
    ]
    splits, warnings = settle(rows)
    assert splits[:2] == ("val", "val")
    assert any("most protected" in warning for warning in warnings)


def test_a_column_of_ids_has_no_say_in_the_splits() -> None:
    rows = numbered(90) + numbered(90, "b", first=90)
    by_serie = [replace(row, classes=row.classes | {("serie", f"g{i // 3}")}) for i, row in enumerate(rows)]
    kept, (warning,) = leave_out_ids(by_serie, others=False, told=("label", "serie"))
    assert settle(kept) == settle(rows)
    assert warning.startswith("serie (60 in 180 samples) looks like a column of ids, too small to be split, and has no say")
    assert "with the column called 'group'" in warning
    settled = [replace(row, earlier=split) for row, split in zip(by_serie, settle(kept)[0], strict=True)]
    assert leave_out_ids(settled, others=False, told=("label", "serie"))[1] == (), "nothing is left to be carved"
    night = [replace(row, classes=row.classes | {("serie", f"n{i // 3}")}) for i, row in enumerate(numbered(60, first=900))]
    assert set(settle(leave_out_ids([*settled, *night], others=False, told=())[0])[0][180:]) == {"train", "val", "test"}


def test_columns_of_small_classes_decide_where_there_is_no_other() -> None:
    few = [row for label in range(30) for row in numbered(4, str(label), first=10 * label)]
    assert leave_out_ids(few, others=False, told=("label",)) == (few, ())
    assert set(settle(leave_out_ids(few, others=True, told=("label",))[0])[0]) == {"train", "val", "test"}
    flagged = [replace(row, classes=row.classes | {("flag", "torn")}) for row in numbered(4, first=900)]
    assert leave_out_ids(flagged + numbered(60), others=False, told=("flag",))[1] == (), "a few flags are no ids"
    tail = [row for label in range(60) for row in numbered(2, f"rare{label}", first=500 + 2 * label)]
    breeds = [replace(row, classes=row.classes | {("colour", "red")}) for row in numbered(90) + tail]
    assert leave_out_ids(breeds, others=True, told=("label",))[1] == (), "a long tail of classes is no column of ids"
    half = numbered(21) + few[:20]
    assert leave_out_ids(half, others=True, told=("label",)) == (half, ()), "most of its samples can be split"


def test_what_keeps_val_and_test_empty_is_told_as_it_is() -> None:
    few = [row for label in range(30) for row in numbered(4, str(label), first=10 * label)]
    assert all("is of a class that is too small to be split" in warning for warning in settle(few)[1][-2:])
    assert all("train is too small to carve it from" in warning for warning in settle(numbered(3))[1][-2:])
    held = numbered(60, earlier="train")
    assert all("keep the splits that they have" in warning for warning in settle(held)[1][-2:])
    one = [replace(row, group="all") for row in numbered(60)]
    assert all("train can spare no group" in warning for warning in settle(one)[1][-2:])
