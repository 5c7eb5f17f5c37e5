"""The TF-IDF baseline of texts: what it tells is scikit-learn's, it is kept as one file, and scored as a bundle is."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.pipeline import make_pipeline

from flows import job
from flows.baselines import TFIDF, Baseline, BaselineFolder
from flows.errors import AskedWrongly
from flows.job import tfidf
from flows.job.datasets import Splits
from flows.job.holdout.scores import read_scores, scores_file
from flows.job.holdout.scoring import score
from flows.job.tfidf import fit_model, read_tfidf
from flows.job.training.counted import fit_counted
from flows.job.training.counted_beside import fitting_counted
from flows.plan import parse_plan
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.settings import Settings
from flows.stages.baseline import counted_key, find_baselines
from flows.stages.planning import make_work_plan
from flows.stages.values import WorkPlan
from heads.spec import Fit, Head, Variant

KINDS, TAGS = ("bird", "cat", "dog"), ("big", "old", "red")
WORDS = {"bird": "sings flies sky", "cat": "purrs sleeps sofa", "dog": "barks runs garden"}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Texts of some words of their kind and some of any; every seventh has no label."""
    folder, random, samples = tmp_path_factory.mktemp("texts"), np.random.default_rng(0), list[Sample]()
    (folder / "texts").mkdir()
    for number in range(150):
        kind, tags = KINDS[number % 3], [tag for tag in TAGS if random.random() < 0.4]
        noise = " ".join(WORDS.values()).split()
        words = [*random.choice(WORDS[kind].split(), 2), *random.choice(noise, 2), *(f"very {tag}" for tag in tags)]
        content = " ".join([*words, f"number{number}"]).encode()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        (folder / "texts" / f"{digest}.txt").write_bytes(content)
        labels = {"kind": None if number % 7 == 6 else kind, "tags": "|".join(tags)}
        split = ("train", "train", "val", "test")[number // 3 % 4]
        samples.append(Sample(digest, f"texts/{digest}.txt", split, labels))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def asked_of(storage: Path, version: DataVersion, head: Head, names: tuple[str, ...]) -> job.Job:
    variant = Variant(backbone="textcnn", heads=(head,), freeze="none", fit=Fit(max_tokens=16))
    work, classes = Work("work", variant, Weights("none")), {head.target: names}
    return job.Job("train", "k", "x", storage, version, classes, Workers(), works=(work,), target=head.target, counted="words")


def texts_of(version: DataVersion, split: str, target: str) -> tuple[list[str], list[str]]:
    known = [(s, cell) for s in version.samples if s.split == split and (cell := s.labels[target]) is not None]
    return [(version.data / s.file).read_text() for s, _ in known], [cell for _, cell in known]


def test_its_measures_and_its_answers_on_the_holdout_are_scikit_learns(tmp_path: Path, version: DataVersion) -> None:
    asked = asked_of(tmp_path, version, Head(target="kind"), KINDS)
    fit_counted(Splits(asked))
    found = BaselineFolder.of(tmp_path, "words").read()
    assert isinstance(found, Baseline)
    assert (found.kind, found.bundle, found.note) == ("tfidf", f"baselines/words/{TFIDF.file}", "")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    reference = make_pipeline(words, LogisticRegression(C=10, max_iter=1000, tol=1e-8)).fit(*texts_of(version, "train", "kind"))
    texts, truths = texts_of(version, "val", "kind")
    assert found.metrics["val/kind/accuracy"] == pytest.approx(accuracy_score(truths, reference.predict(texts)))
    assert found.metrics["val/kind/f1_macro"] == pytest.approx(f1_score(truths, reference.predict(texts), average="macro"))
    # The fit stops a little before the minimum.
    assert found.metrics["val/kind/loss"] == pytest.approx(log_loss(truths, reference.predict_proba(texts)), rel=5e-3)
    assert found.num_parameters == reference[-1].coef_.size + 3

    outcome = score(replace(asked, kind="score", version=version, bundles=(str(found.bundle),), works=(), counted=""))
    table = read_scores(scores_file(tmp_path, "words", version.digest))
    assert outcome.scores == {found.bundle: scores_file(tmp_path, "words", version.digest).address}
    texts, truths = texts_of(version, "test", "kind")
    assert len(table.rows) == len(texts)
    assert table.metrics["kind/accuracy"] == pytest.approx(accuracy_score(truths, reference.predict(texts)))


def test_label_sets_and_a_label_that_never_occurs(tmp_path: Path, version: DataVersion) -> None:
    head = Head(target="tags", task="multilabel")
    fit_counted(Splits(asked_of(tmp_path, version, head, (*TAGS, "unheard"))))
    found = BaselineFolder.of(tmp_path, "words").read()
    assert isinstance(found, Baseline)
    assert found.metrics["val/tags/average_precision"] > 0.9
    content = BaselineFolder.of(tmp_path, "words").place.read(TFIDF.file)
    assert content
    model = read_tfidf(content)
    assert model.classes == {"tags": (*TAGS, "unheard")}
    assert len(model.thresholds["tags"]) == 4
    (answer,) = model.predict([b"runs very red very old"])
    assert set(answer["tags"].labels) == {"red", "old"}  # type: ignore[union-attr]


@pytest.mark.parametrize("present", [(0, 0, 0), (0, 2, 2), (0, 1, 3)])
def test_classes_that_do_not_occur_are_never_told(present: tuple[int, ...]) -> None:
    texts = ["red house", "blue car", "green tree"]
    model = fit_model(Head(target="x"), ("a", "b", "c", "d"), texts, torch.tensor(present))
    again = read_tfidf(model.to_bytes())
    told = again.predict([text.encode() for text in texts])
    assert [one["x"].label for one in told] == ["abcd"[number] for number in present]  # type: ignore[union-attr]
    assert told == model.predict([text.encode() for text in texts])


def test_words_with_vowel_signs_are_words() -> None:
    texts = ["बिल्ली सोती", "ঘুমায়"] * 4
    model = fit_model(Head(target="x"), ("hindi", "bengali"), texts, torch.tensor([0, 1] * 4))
    told = [one["x"] for one in model.predict([text.encode() for text in texts])]
    assert [each.label for each in told] == ["hindi", "bengali"] * 4  # type: ignore[union-attr]


def test_of_very_many_classes_fewer_terms_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "MAX_WEIGHTS", 12)
    model = fit_model(Head(target="x"), ("a", "b", "c"), ["one two", "two three", "two four"], torch.tensor([0, 1, 2]))
    assert model.weights.shape == (3, 4)
    assert "two" in model.terms


def test_a_file_that_is_gone_is_told(tmp_path: Path, version: DataVersion) -> None:
    asked = replace(asked_of(tmp_path, version, Head(target="kind"), KINDS), kind="score", version=version)
    with pytest.raises(AskedWrongly, match="is gone: remove what lies beside it"):
        score(replace(asked, bundles=(f"baselines/words/{TFIDF.file}",)))


def test_a_driver_fits_it_once_beside_its_training_and_a_text_that_is_gone_is_no_end_of_that(
    tmp_path: Path, version: DataVersion
) -> None:
    asked = asked_of(tmp_path, version, Head(target="kind"), KINDS)
    place = BaselineFolder.of(tmp_path, "words").place
    gone = replace(version, data=tmp_path / "elsewhere")
    with fitting_counted(replace(asked, version=gone)):
        pass
    assert not place.facts(), "the next training tries again"
    with fitting_counted(asked):
        pass
    before = place.facts()
    assert TFIDF.file in before
    with fitting_counted(asked):
        pass
    assert place.facts() == before, "it is not fitted again"


def work_plan_of(version: DataVersion, target: str) -> WorkPlan:
    asked = {"name": "x", "targets": [target], "backbones": ["textcnn"], "weights": "none", "freeze": ["none"]}
    return make_work_plan(parse_plan(asked), version)


def test_a_plan_of_texts_has_one_beside_its_probe_and_the_best_on_validation_comes_first(
    tmp_path: Path, version: DataVersion
) -> None:
    settings, work_plan = Settings(workspace=tmp_path), work_plan_of(version, "kind")
    assert [one.kind for one in find_baselines(settings, work_plan)] == ["majority"]
    folder = BaselineFolder.of(settings.storage, counted_key(work_plan))
    folder.write_failure("no training text has a label of 'kind'")
    assert find_baselines(settings, work_plan)[0].note.endswith("; no TF-IDF regression: no training text has a label of 'kind'")
    folder.write(Baseline(kind="tfidf", label="TF-IDF regression", metrics={"val/kind/accuracy": 0.75}))
    assert [one.kind for one in find_baselines(settings, work_plan)] == ["tfidf"]


def test_its_key_is_that_of_its_texts_and_labels_alone(version: DataVersion) -> None:
    first = counted_key(work_plan_of(version, "kind"))
    assert counted_key(work_plan_of(version, "tags")) != first
    tested = replace(version.samples[-1], digest="e" * 32, split="test")
    assert counted_key(work_plan_of(replace(version, samples=(*version.samples, tested)), "kind")) == first
    grown = replace(version.samples[0], digest="e" * 32)
    assert counted_key(work_plan_of(replace(version, samples=(*version.samples, grown)), "kind")) != first
