"""The baseline of tags, on posts of social media: what it tells is a plain count of train's, and it is scored as a bundle is."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from flows import job
from flows.baselines import WORD_LIST, Baseline, BaselineFolder
from flows.job.datasets import Splits
from flows.job.holdout.scores import read_scores, scores_file
from flows.job.holdout.scoring import score
from flows.job.training.counted import fit_counted
from flows.job.word_list import list_words, read_word_list
from flows.plan import parse_plan
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.settings import Settings
from flows.stages.baseline import counted_key, find_baselines
from flows.stages.planning import make_work_plan
from heads.spec import Fit, Head, Variant
from heads.tasks.bio import read_cell, spans_of, tag_names, types_in, write_cell

WNUT = Path(__file__).parents[2].parent / "shared" / "data" / "wnut17"
HEAD = Head(target="tags", task="tagging", design="linear")
Sentences = list[tuple[str, str]]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """All sentences of wnut17, a file each."""
    folder, samples = tmp_path_factory.mktemp("posts"), dict[str, Sample]()
    (folder / "texts").mkdir()
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        for block in (WNUT / f"{name}.conll").read_text().strip().split("\n\n"):
            words, tags = zip(*(line.split("\t") for line in block.split("\n")), strict=True)
            content = " ".join(words).encode()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            (folder / "texts" / f"{digest}.txt").write_bytes(content)
            samples.setdefault(digest, Sample(digest, f"texts/{digest}.txt", split, {"tags": write_cell(tags)}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples.values()), folder, ())


def sentences_of(version: DataVersion, split: str) -> Sentences:
    known = [(s, cell) for s in version.samples if s.split == split and (cell := s.labels["tags"]) is not None]
    return [((version.data / s.file).read_text(), cell) for s, cell in known]


def asked_of(storage: Path, version: DataVersion) -> job.Job:
    names = tag_names({name for s in version.samples for name in types_in(read_cell(s.labels["tags"] or "O"))})
    variant = Variant(backbone="lstm", heads=(HEAD,), freeze="none", fit=Fit(max_tokens=16))
    work = Work("work", variant, Weights("none"))
    return job.Job("train", "k", "x", storage, version, {"tags": names}, Workers(), works=(work,), target="tags", counted="words")


def span_f1(train: Sentences, read: Sentences) -> float:
    """The span F1 of telling each word its most frequent tag in train, whatever its case."""
    seen = defaultdict[str, Counter[str]](Counter)
    for text, cell in train:
        for word, tag in zip(text.split(), read_cell(cell), strict=True):
            seen[word.lower()][tag] += 1
    best = {word: max(counts, key=lambda tag: (counts[tag], tag == "O", [-ord(c) for c in tag])) for word, counts in seen.items()}
    true = {(n, *span) for n, (_, cell) in enumerate(read) for span in spans_of(read_cell(cell))}
    told = {(n, *s) for n, (text, _) in enumerate(read) for s in spans_of([best.get(w.lower(), "O") for w in text.split()])}
    return 2 * len(true & told) / (len(true) + len(told))


def test_its_span_f1_on_validation_and_on_the_holdout_is_that_of_a_plain_count(tmp_path: Path, version: DataVersion) -> None:
    asked, train = asked_of(tmp_path, version), sentences_of(version, "train")
    fit_counted(Splits(asked))
    found = BaselineFolder.of(tmp_path, "words").read()
    assert isinstance(found, Baseline)
    assert (found.kind, found.bundle, found.note) == ("word_list", f"baselines/words/{WORD_LIST.file}", "")
    assert found.metrics["val/tags/span_f1"] == pytest.approx(span_f1(train, sentences_of(version, "val")))
    assert 0.12 < found.metrics["val/tags/span_f1"] < 0.18, "what is tagged O throughout has 0"
    assert (found.reads, found.num_samples) == ("counted words", len(train))

    outcome = score(replace(asked, kind="score", version=version, bundles=(str(found.bundle),), works=(), counted=""))
    table = read_scores(scores_file(tmp_path, "words", version.digest))
    assert outcome.num_forwarded == 0
    assert {row.truth for row in table.rows} == {cell for _, cell in sentences_of(version, "test")}
    assert table.metrics["tags/span_f1"] == pytest.approx(span_f1(train, sentences_of(version, "test")))


def test_of_equally_frequent_tags_o_is_told_and_then_the_first_by_name() -> None:
    names = ("O", "B-a", "I-a", "B-b", "I-b")
    sentences = [(["Even", "twice", "once", "x"], [0, 3, 3, 0]), (["EVEN", "Twice", "x"], [1, 1, 1]), (["x"], [1])]
    listed = list_words(HEAD, names, sentences)
    assert listed.tags == {"twice": "B-a", "once": "B-b", "x": "B-a"}
    again = read_word_list(listed.to_bytes())
    (answer,) = again.predict([b"even TWICE  never\nonce"])
    assert answer == listed.predict([b"even TWICE  never\nonce"])[0]
    assert answer["tags"].words == ("even", "TWICE", "never", "once")  # type: ignore[union-attr]
    assert answer["tags"].tags == ("O", "B-a", "O", "B-b")  # type: ignore[union-attr]


def test_a_plan_of_tags_asks_for_it_and_names_it_as_its_baseline(tmp_path: Path, version: DataVersion) -> None:
    asked = {"name": "x", "targets": ["tags"], "backbones": ["lstm"], "weights": "none", "freeze": ["none"]}
    settings, work_plan = Settings(workspace=tmp_path), make_work_plan(parse_plan(asked), version)
    assert [one.kind for one in find_baselines(settings, work_plan)] == ["majority"]
    few = replace(version, samples=version.samples[::20])
    fit_counted(Splits(replace(asked_of(settings.storage, few), counted=counted_key(work_plan))))
    assert [(one.kind, one.label) for one in find_baselines(settings, work_plan)] == [("word_list", "word list")]
