"""The gate on tags of words: rows, span F1 on resamples, the guards, and what is said of a constant answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from flows.gate import Case, Policy, decide
from flows.gate.answers import read_pair
from flows.gate.guards.calibration import calibration
from flows.gate.guards.negative_flips import negative_flips
from flows.gate.guards.worst_class import worst_class
from flows.gate.measures import measure_of
from flows.gate.recipe import sample_values
from flows.gate.standing import accuracies, reliability
from flows.records import ScoreTable
from flows.stages.trials.serving import _difference
from heads.spec import Head
from heads.tasks import tagging
from heads.tasks.answers import TagsPrediction
from heads.tasks.bio import spans_of, tag_names, write_cell
from heads.tasks.rows import Scored

NAMES = tag_names(["place", "person"])
POLICY = Policy("tags/span_f1", guards=dict.fromkeys(("worst_class", "negative_flips", "calibration"), "warn"))
Sentences = list[list[str]]


def sentences(num: int, seed: int = 0) -> Sentences:
    """Sentences of which one in four has no span."""
    random = np.random.default_rng(seed)
    parts = [["O"], ["O", "O"], ["B-place"], ["B-person", "I-person"]]
    weights = [[0.5, 0.5, 0.0, 0.0], [0.3, 0.2, 0.25, 0.25]]
    drawn = [random.choice(4, random.integers(1, 7), p=weights[int(random.random() < 0.75)]) for _ in range(num)]
    return [[tag for number in numbers for tag in parts[number]] for numbers in drawn]


def read(truths: Sentences, share: float, seed: int) -> Sentences:
    """The truth, of which about so many tags are replaced by any."""
    random = np.random.default_rng(seed)
    return [[tag if random.random() >= share else NAMES[random.integers(0, len(NAMES))] for tag in tags] for tags in truths]


def table(truths: Sentences, guesses: Sentences, bundle: str) -> ScoreTable:
    head, rows = Head(target="tags", task="tagging"), list[Scored]()
    for number, (truth, told) in enumerate(zip(truths, guesses, strict=True)):
        answer = TagsPrediction(tuple(map(str, range(len(told)))), tuple(told), ())
        rows.append(tagging.judge(f"{number:032x}", answer, write_cell(truth), head, lambda: np.zeros(0)))
    metrics = {f"tags/{name}": value for name, value in tagging.measure_rows(rows, NAMES, None).items()}
    return ScoreTable(bundle, "v1", tuple(rows), metrics, {"tags": "tagging"})


def f1(truths: Sentences, guesses: Sentences) -> float:
    """Span F1 by sets of spans."""
    true, told = ({(n, *span) for n, tags in enumerate(each) for span in spans_of(tags)} for each in (truths, guesses))
    return 2 * len(true & told) / (len(true) + len(told))


def rows_of(one: ScoreTable) -> Mapping[tuple[str, str], Scored]:
    return {(row.digest, row.truth): row for row in one.rows}


def test_rows_measure_as_their_sentences_do() -> None:
    truths = sentences(80)
    guesses = read(truths, 0.3, 1)
    found = table(truths, guesses, "new")
    assert found.metrics["tags/span_f1"] == pytest.approx(f1(truths, guesses), abs=1e-12)
    pairs = [pair for both in zip(truths, guesses, strict=True) for pair in zip(*both, strict=True)]
    assert found.metrics["tags/token_accuracy"] == sum(one == other for one, other in pairs) / len(pairs)
    for name in ("place", "person"):
        only = [[[tag if tag[2:] == name else "O" for tag in tags] for tags in each] for each in (truths, guesses)]
        assert found.metrics[f"tags/f1_{name}"] == pytest.approx(f1(*only), abs=1e-12)


def test_span_f1_of_resamples_is_that_of_their_sentences() -> None:
    truths = sentences(60)
    guesses = read(truths, 0.3, 1)
    one = rows_of(table(truths, guesses, "new"))
    names, answers, _ = read_pair("tagging", one, one)
    assert names == ("person", "place")
    weights = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), 5).T
    found = measure_of("tagging", "span_f1", answers)(weights.astype(float))
    # Rows are sorted by their digests, as sentences are here.
    for column, value in zip(weights.T, found, strict=True):
        repeated = [[tags for tags, times in zip(each, column, strict=True) for _ in range(times)] for each in (truths, guesses)]
        assert value == pytest.approx(f1(*repeated), abs=1e-9)
    values, _ = sample_values([one], one, "tagging", "span_f1")
    assert values.mean() == pytest.approx(f1(truths, guesses), abs=1e-6), "influences have the measure as their mean"


def test_a_first_model_is_compared_with_tagging_nothing_and_a_better_one_is_promoted() -> None:
    truths = sentences(150)
    good, bad = table(truths, read(truths, 0.03, 1), "new"), table(truths, read(truths, 0.3, 2), "old")
    first = decide(Case(good, None, POLICY, {}))
    assert first.promoted
    assert first.figures["baseline_metric"] == 0.0
    assert "always answering 'O', what most words are" in first.reasons[0]
    assert not decide(Case(table(truths, [["O"] * len(tags) for tags in truths], "none"), None, POLICY, {})).promoted
    verdict = decide(Case(good, bad, POLICY, {}, champion_name="champion 3"))
    assert verdict.promoted
    assert verdict.figures["gain"] == pytest.approx(good.metrics["tags/span_f1"] - bad.metrics["tags/span_f1"])
    assert not decide(Case(bad, good, POLICY, {}, champion_name="champion 3")).promoted


def test_a_first_model_that_is_proven_worse_than_the_word_list_is_not_promoted_though_better_than_tagging_nothing() -> None:
    truths, policy = sentences(150), replace(POLICY, guards={"baseline": "block"})
    poor, listed = table(truths, read(truths, 0.6, 1), "new"), table(truths, read(truths, 0.3, 2), "list")
    beside = {"baseline_name": "the word list", "baseline_reads": "counted words"}
    verdict = decide(Case(poor, None, policy, {}, baseline=listed, **beside))
    assert verdict.findings[0].passed
    assert not verdict.promoted
    assert "of the word list: -0." in verdict.findings[-1].words
    assert verdict.reasons[-1].startswith("counted words alone tell more than the training made of them: try ")
    assert decide(Case(listed, None, policy, {}, baseline=poor, **beside)).promoted


def test_a_type_that_is_read_worse_and_sentences_that_flip_are_found() -> None:
    truths = sentences(200)
    swapped = [["O" if tag == "B-place" else tag for tag in tags] for tags in truths]
    case = Case(table(truths, swapped, "new"), table(truths, truths, "old"), POLICY, {}, champion_name="champion 3")
    worst, flips = worst_class(case), negative_flips(case)
    assert worst is not None
    assert not worst.passed
    assert "place 0.000 against 1.000" in worst.words
    assert "F1" in worst.words
    assert flips is not None
    assert flips.figures["num_flips"] == sum("B-place" in tags for tags in truths)
    assert "place read as nothing" in flips.notes[0]


def test_tags_have_no_probabilities_and_guards_of_these_say_nothing() -> None:
    truths = sentences(50)
    one = table(truths, read(truths, 0.1, 1), "new")
    assert calibration(Case(one, one, POLICY, {})) is None
    assert accuracies(one, "tags", {}) == {}
    assert reliability(one, "tags") == ()


def test_a_bundle_that_answers_otherwise_than_it_was_scored_is_told() -> None:
    (row,) = table([["O", "B-place", "O"]], [["O", "B-place", "O"]], "new").rows
    assert _difference(row, {"tags": ["O", "B-place", "O"]}) == ""
    assert "2 of 3 words have another tag" in _difference(row, {"tags": ["B-person", "O", "O"]})
