"""Tagged sentences brought into a data folder: `.conll` files, tables with tags, and what is no tagging."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flows.errors import AskedWrongly
from flows.landing import ingest
from flows.manifest import class_counts
from flows.plan import check_data, class_names, expand, parse_plan, primary_metric, targets_of
from flows.records import DataVersion
from heads.tasks.bio import read_cell, spans_of
from tests.flows.test_landing import data, samples, tree

__all__ = ["data"]
WNUT = Path(__file__).parents[2].parent / "shared" / "data" / "wnut17"
FIRST = "Anna\tB-person\nvon\tI-person\nOsten\tI-person\nsings\tO\n"


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def sentences(count: int, word: str = "note") -> str:
    """Sentences of one word to three, every other one with a place."""
    return "\n".join(f"{word}{number}\tO\n" + ("Rome\tB-place\n" if number % 2 else "") for number in range(count))


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.conll").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_sentences_come_in_as_texts_with_their_tags_and_the_splits_of_their_files(tmp_path: Path, data: Path) -> None:
    source = write(
        tmp_path / "source",
        train=f"-DOCSTART- -X- O\n\n{FIRST}\n\n\n{sentences(20)}",
        # By spaces, with columns between, of one word, with a mark of byte order and lines of another system.
        dev="\ufeff" + sentences(6, "more").replace("\t", " x y ").replace("\n", "\r\n"),
        test="alone\tO\n\n" + sentences(6, "last"),
    )
    (source / "README.md").write_text("about")
    report = ingest(source, data)
    assert (report.added, report.quarantined, report.warnings) == (34, (), ())
    found = samples(data)
    sample = found[f"texts/{md5('Anna von Osten sings')}.txt"]
    assert (sample.digest, sample.split) == (md5("Anna von Osten sings"), "train")
    assert sample.labels == {"tags": "tags: B-person I-person I-person O"}
    assert (data / sample.file).read_text() == "Anna von Osten sings"
    assert {split: sum(s.split == split for s in found.values()) for split in ("train", "val", "test")} == {
        "train": 21,
        "val": 6,
        "test": 7,
    }
    assert found[f"texts/{md5('more1 Rome')}.txt"].split == "val"
    assert class_counts(list(found.values()))["tags"] == {
        "person": {"train": 1, "val": 0, "test": 0},
        "place": {"train": 10, "val": 3, "test": 3},
    }
    before = tree(data)
    assert ingest(source, data).unchanged == 34
    assert tree(data) == before


@pytest.mark.parametrize(
    "lines",
    [
        "EU B-ORG \nrejects O \nGerman B-MISC   \nNew O\n",
        " EU  NNP   B-ORG\n  rejects VBZ O\nGerman JJ  B-MISC  \nNew O\n",
        "EU \t B-ORG\nrejects\t\tO\nGerman\tJJ NN\tB-MISC \nNew\tO\n",
        " -DOCSTART- -X- O \r\n \t\r\nEU NNP B-NP B-ORG \r\nrejects VBZ B-VP O\r\nGerman JJ B-NP B-MISC\r\nNew NN I-NP O\n\t\n",
    ],
)
def test_white_space_around_columns_and_between_them_is_no_column(lines: str, tmp_path: Path, data: Path) -> None:
    report = ingest(write(tmp_path / "source", train=f"{lines}\n{sentences(40)}"), data)
    assert (report.num_samples, report.quarantined) == (41, ())
    assert samples(data)[f"texts/{md5('EU rejects German New')}.txt"].labels == {"tags": "tags: B-ORG O B-MISC O"}


def test_the_words_alone_decide_a_split_and_equal_sentences_never_straddle_two(tmp_path: Path, data: Path) -> None:
    ingest(write(tmp_path / "one", all=sentences(60)), data)
    splits = {file: sample.split for file, sample in samples(data).items()}
    assert set(splits.values()) == {"train", "val", "test"}
    other = tmp_path / "other" / "data"
    other.mkdir(parents=True)
    ingest(write(tmp_path / "two", all=sentences(60).replace("B-place", "B-town")), other)
    assert {file: sample.split for file, sample in samples(other).items()} == splits
    report = ingest(write(tmp_path / "three", train=sentences(60), test="note3\tB-odd\nRome\tO\n"), data)
    same = [sample for sample in samples(data).values() if sample.digest == md5("note3 Rome")]
    assert [sample.split for sample in same] == ["test", "test"]
    assert any("different label" in warning and "tags: B-odd O" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("a\tO\nb\tI-x\n", "its tag 2, 'I-x', goes on with a span of 'x' that the tag before it, 'O', is not in"),
        ("a\tB-x\nb\tI-y\n", "'I-y', goes on with a span of 'y' that the tag before it, 'B-x', is not in"),
        ("a\tS-x\n", "its tag 1 is 'S-x'; allowed: O, B-<type> and I-<type> (BIO)"),
        ("a\tO\nb\n", "its line 2 has no word and tag with a tab or a space between"),
        ("a\tO\nb c\t\n", "its line 2 has no word and tag with a tab or a space between"),
        ("a\tO\nb\tNN\t\n", "its line 2 has no word and tag with a tab or a space between"),
        ("a\tO\n\tNN\tO\n", "its line 2 has no word and tag with a tab or a space between"),
        ("a\tO\n\tO\n", "its line 2 has no word and tag with a tab or a space between"),
        ("two words\tO\n", "has 2 words, as white space parts them, and 1 tags; give each word one tag"),
        ("a\0\tO\n", "holds NUL bytes, as no text does; leave it out"),
    ],
)
def test_a_sentence_that_is_no_bio_is_set_aside_with_its_line(lines: str, reason: str, tmp_path: Path, data: Path) -> None:
    report = ingest(write(tmp_path / "source", train=f"{lines}\n{sentences(40)}"), data)
    ((name, said),) = report.quarantined
    assert name == "train.conll line 1"
    assert reason in said
    assert report.num_samples == 40


@pytest.mark.parametrize(
    "files",
    [
        "train=train testa=val testb=test",
        "eng.train=train eng.testa=val eng.testb=test",
        "wnut17train=train emerging.dev=val emerging.test=test",
        "en-ud-train=train en-ud-devel=val en-ud-test=test",
        "train_1=train train_2=train validation2003=val gold-TEST=test",
        "de/train/a=train de/dev/b=val fr/test/c=test",
    ],
)
def test_the_splits_of_public_sets_of_tags_are_read_from_their_files_names(files: str, tmp_path: Path, data: Path) -> None:
    expected: dict[str, str] = {}
    for number, (name, split) in enumerate(file.split("=") for file in files.split()):
        place = (tmp_path / "source" / name).parent
        write(place, **{name.rpartition("/")[2]: sentences(12, f"word{number}x")})
        expected |= {md5(f"word{number}x0"): split, md5(f"word{number}x1 Rome"): split, md5(f"word{number}x2"): split}
    report = ingest(tmp_path / "source", data)
    found = {sample.digest: sample.split for sample in samples(data).values()}
    assert {digest: found[digest] for digest in expected} == expected
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ("train dev more", "more.conll"),
        ("train testa", "testa.conll"),
        ("train dev-test", "dev-test.conll"),
        ("train dev holdout", "holdout.conll"),
        ("a.train b.train notes", "notes.conll"),
    ],
)
def test_a_file_that_says_no_split_beside_others_that_do_is_refused(files: str, named: str, tmp_path: Path, data: Path) -> None:
    source = write(tmp_path / "source", **{name: sentences(12, f"word{name}") for name in files.split()})
    with pytest.raises(
        AskedWrongly, match=f"which split is the file '{named}'. Others say theirs, as '[a-z.]+.conll' does. Let its name"
    ):
        ingest(source, data)
    assert tree(data) == {}


@pytest.mark.parametrize("beside", ["aaa", "zzz"])
def test_a_file_whose_split_is_unclear_is_refused_beside_any_other(beside: str, tmp_path: Path, data: Path) -> None:
    source = write(tmp_path / "source", **{name: sentences(12, f"word{name}") for name in (beside, "holdout")})
    with pytest.raises(AskedWrongly, match=r"which split is the file 'holdout.conll'\? Let its name"):
        ingest(source, data)


def test_files_of_tags_of_which_none_says_a_split_are_carved_and_so_is_one_alone(tmp_path: Path, data: Path) -> None:
    for number, names in enumerate((("part1", "part2"), ("my.test",))):
        other = tmp_path / str(number) / "data"
        other.mkdir(parents=True)
        ingest(write(tmp_path / f"source{number}", **{name: sentences(60, name) for name in names}), other)
        assert {sample.split for sample in samples(other).values()} == {"train", "val", "test"}


def test_comments_before_a_sentence_are_no_words_of_it(tmp_path: Path, data: Path) -> None:
    lines = (
        "# id 52-a\tdomain=train\n# text = Vitamin O\n# Das U-Boot\nEU _ _ B-ORG\n# _ _ O\n\n"
        "# _ _ O\n1 _ _ O\n\n# newdoc\n\n# sent_id = 3\n"
    )
    report = ingest(write(tmp_path / "source", train=lines + sentences(40)), data)
    assert (report.num_samples, report.quarantined) == (42, ())
    found = samples(data)
    assert found[f"texts/{md5('EU #')}.txt"].labels == {"tags": "tags: B-ORG O"}
    assert found[f"texts/{md5('# 1')}.txt"].labels == {"tags": "tags: O O"}


Spans = list[tuple[str, int, int]]


def in_scheme(spans: Spans, count: int, scheme: str) -> list[str]:
    """The tags of words with spans (type, start, end), in a plain loop."""
    tags, free = ["O"] * count, {*range(count)}
    for kind, start, end in spans:
        assert free >= {*range(start, end)}
        free -= {*range(start, end)}
        after = start > 0 and tags[start - 1][1:] == f"-{kind}"
        inside, last, single = {"BIOES": ("I", "E", "S"), "BILOU": ("I", "L", "U"), "BMES": ("M", "E", "S")}.get(
            scheme, ("I", "I", "I")
        )
        for place in range(start, end):
            letter = inside
            if scheme == "IOB1":
                letter = "B" if place == start and after else "I"
            elif end - start == 1:
                letter = single
            elif place in (start, end - 1):
                letter = "B" if place == start else last
            tags[place] = f"{letter}-{kind}"
    return tags


@pytest.mark.parametrize("scheme", ["BIOES", "BILOU", "BMES", "IOB1"])
def test_tags_of_other_schemes_mark_the_same_spans_in_bio(scheme: str, tmp_path: Path, data: Path) -> None:
    random = Random(scheme)
    expected: dict[str, Spans] = {}
    lines: list[str] = []
    for number in range(200):
        spans: Spans = []
        place = 0
        while (place := place + random.randrange(3)) < 8:
            spans.append((random.choice("xy"), place, min(place + random.randint(1, 3), 8)))
            place = spans[-1][2]
        words = [f"w{number}-{place}" for place in range(8)]
        expected[md5(" ".join(words))] = spans
        lines += [f"{word}\t{tag}" for word, tag in zip(words, in_scheme(spans, 8, scheme), strict=True)] + [""]
    wrong = {"BIOES": "B-x O", "BILOU": "B-x L-y", "BMES": "M-x", "IOB1": "O B-x"}[scheme]
    source = write(tmp_path / "source", all="\n".join([*lines, *(f"v\t{tag}" for tag in wrong.split())]))
    report = ingest(source, data)
    assert report.warnings[0].startswith(f"the tags are of the scheme {scheme}, ")
    (reason,) = [reason for _, reason in report.quarantined]
    assert f"{wrong.split()[-1]!r}" in reason or "no end" in reason
    assert f"of the scheme {scheme}, in which most of the source's sentences are" in reason
    read = {sample.digest: spans_of(read_cell(sample.labels["tags"] or "")) for sample in samples(data).values()}
    assert read == expected


def test_a_few_sentences_without_a_b_are_faulty_bio_and_no_other_scheme(tmp_path: Path, data: Path) -> None:
    few = "\n".join(f"a{number}\tI-x\nb\tI-x\n" for number in range(4))
    with pytest.raises(AskedWrongly, match=r"4 of 4 texts are bad .* write the first tag of each span as 'B-x' \(BIO\)"):
        ingest(write(tmp_path / "source", train=few), data)
    assert ingest(write(tmp_path / "source", train=few, dev="c\tI-x\nd\tI-y\n"), data).num_samples == 5


@pytest.mark.parametrize("folder", ["", "en"])
@pytest.mark.parametrize("names", ["train.txt valid.txt test.txt", "eng.train eng.testa eng.testb"])
def test_tagged_sentences_under_other_names_are_told_what_they_should_be_called(
    names: str, folder: str, tmp_path: Path, data: Path
) -> None:
    place = tmp_path / "source" / folder
    place.mkdir(parents=True)
    for name in names.split():
        (place / name).write_text(f"-DOCSTART- -X- -X- O\n\n{sentences(900)}")
    with pytest.raises(AskedWrongly, match=r"a word and its tag a line: let its name end in .conll"):
        ingest(tmp_path / "source", data)
    write(tmp_path / "mixed", train=sentences(40), **{"emerging.dev": sentences(9, "x")})
    (tmp_path / "mixed" / "emerging.test.annotated").write_text(sentences(9, "y"))
    with pytest.raises(AskedWrongly, match=r"emerging.test.annotated.* a word and its tag a line: let its name end in .conll"):
        ingest(tmp_path / "mixed", data)
    assert tree(data) == {}


def test_a_file_that_is_no_text_or_no_tagging_is_refused_and_nothing_changed(tmp_path: Path, data: Path) -> None:
    for content, words in (
        (b"\x89PNG\r\n\x1a\n\0\0", "train.conll is no text in UTF-8 .* save it as UTF-8"),
        ("1\tThe\tDET\n2\tcat\tNOUN\n", "1 of 41 texts are bad|'NOUN'"),
    ):
        source = write(tmp_path / "source", train=content, test=sentences(40))
        with pytest.raises(AskedWrongly, match=words):
            ingest(source, data, max_bad_share=0.01)
    with pytest.raises(AskedWrongly, match=r"marks no span: the tags of all of its 40 sentences are O; tag some words"):
        ingest(write(tmp_path / "nothing", train=sentences(40).replace("B-place", "O")), data)
    with pytest.raises(AskedWrongly, match=r"is empty: it holds no image and no text, only 1 file \(1 .conll\)"):
        ingest(write(tmp_path / "empty", train="\n\n"), data)
    assert tree(data) == {}


def test_a_table_may_hold_tags_beside_classes(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [f"go to Rome{number},tags: O O B-place,{('a', 'b')[number % 2]}" for number in range(30)]
    (folder / "labels.csv").write_text("\n".join(["text,places,kind", *rows, "too short,tags: O,a"]))
    report = ingest(folder, data)
    assert report.quarantined == (("row 32.txt", "has 2 words, as white space parts them, and 1 tags; give each word one tag"),)
    version = DataVersion("d", "r", tuple(samples(data).values()), data, ())
    plan = parse_plan({"name": "a", "backbones": ["lstm"], "targets": [{"column": "kind"}, {"column": "places"}]})
    assert [target.task for target in targets_of(plan, version)] == ["classification", "tagging"]


def planned(changed: dict[str, Any], version: DataVersion) -> None:
    plan = parse_plan({"name": "a", "backbones": ["lstm"], **changed})
    check_data(plan, version)
    expand(plan, version)


def test_a_plan_finds_the_task_its_tags_and_its_measure(tmp_path: Path, data: Path) -> None:
    ingest(write(tmp_path / "source", train=f"{FIRST}\n{sentences(20)}", dev=sentences(9, "x"), test=sentences(9, "y")), data)
    version = DataVersion("d", "r", tuple(samples(data).values()), data, ())
    plan = parse_plan({"name": "a", "backbones": ["lstm"], "heads": ["linear", "crf", "attention"], "fit": {"epochs": 1}})
    check_data(plan, version)
    (target,) = targets_of(plan, version)
    assert (target.task, primary_metric(plan, version)) == ("tagging", "tags/span_f1")
    assert class_names(target, version) == ("O", "B-person", "I-person", "B-place", "I-place")
    assert [variant.heads[0].design for variant in expand(plan, version)] == ["linear", "crf"]
    for changed, words in (
        ({"targets": [{"column": "tags", "task": "classification"}]}, "holds tags of words, and its task is given as classific"),
        ({"promotion": {"metric": "tags/accuracy"}}, "accuracy is no measure of tagging, which 'tags' is; allowed: tags/span_f1"),
        ({"heads": ["attention"]}, "tagging"),
        ({"promotion": {"group": "tags"}}, "the data set has no column 'tags' of groups"),
    ):
        with pytest.raises(AskedWrongly, match=words):
            planned(changed, version)


def test_a_type_that_train_lacks_is_refused(tmp_path: Path, data: Path) -> None:
    source = write(tmp_path / "source", train=sentences(20), dev=sentences(9, "x"), test=FIRST)
    ingest(source, data)
    version = DataVersion("d", "r", tuple(samples(data).values()), data, ())
    with pytest.raises(AskedWrongly, match="the test split holds classes that train lacks: B-person, I-person"):
        check_data(parse_plan({"name": "a", "backbones": ["lstm"]}), version)


@pytest.mark.skipif(not WNUT.is_dir(), reason="needs the set beside the checkout")
def test_a_real_set_of_tags_comes_in_whole(data: Path) -> None:
    report = ingest(WNUT, data)
    assert (report.added, report.quarantined) == (3394 + 1009 + 1287, ())
    counts = class_counts(list(samples(data).values()))["tags"]
    assert set(counts) == {"corporation", "creative-work", "group", "location", "person", "product"}
    assert sum(of_type["train"] for of_type in counts.values()) in range(1900, 1976), "some sentences are held out as well"
