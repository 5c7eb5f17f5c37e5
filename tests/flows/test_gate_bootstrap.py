"""The gate on label sets and masks: measures, the paired bootstrap, its level and power, and every rule of promotion there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from sklearn import metrics

from flows.errors import AskedWrongly
from flows.gate import Case, Policy, decide
from flows.gate.answers import read_pair
from flows.gate.bootstrap import Resampled, resample
from flows.gate.measures import Answers, measure_of
from flows.records import ScoreTable, Verdict
from heads.catalogue import Task
from heads.tasks.rows import Scored

SET_MEASURES: dict[str, Callable[..., float]] = {
    "accuracy": lambda truth, guess, scores: metrics.accuracy_score(truth, guess),
    "f1_macro": lambda truth, guess, scores: metrics.f1_score(truth, guess, average="macro", zero_division=0),
    "f1_micro": lambda truth, guess, scores: metrics.f1_score(truth, guess, average="micro", zero_division=0),
    "f1_weighted": lambda truth, guess, scores: metrics.f1_score(truth, guess, average="weighted", zero_division=0),
    "precision_macro": lambda truth, guess, scores: metrics.precision_score(truth, guess, average="macro", zero_division=0),
    "recall_macro": lambda truth, guess, scores: metrics.recall_score(truth, guess, average="macro", zero_division=0),
    "average_precision": lambda truth, guess, scores: metrics.average_precision_score(truth, scores, average="macro"),
    "auroc": lambda truth, guess, scores: metrics.roc_auc_score(truth, scores, average="macro"),
}
MASK_MEASURES: dict[str, Callable[..., float]] = {
    "miou": lambda truth, guess: metrics.jaccard_score(truth, guess, average="macro", zero_division=0),
    "dice": lambda truth, guess: metrics.f1_score(truth, guess, average="macro", zero_division=0),
    "pixel_accuracy": lambda truth, guess: metrics.accuracy_score(truth, guess),
}
RANKED = ("average_precision", "auroc")
NAMES = ("ant", "bee", "cat", "dog", "elk")


def sets(truth: np.ndarray, scores: np.ndarray, *, names: Sequence[str] = NAMES, bundle: str = "new") -> ScoreTable:
    """A table of label sets: those with a score above a half are predicted."""
    rows = []
    for index, (row, values) in enumerate(zip(truth, scores, strict=True)):
        told = ["|".join(name for name, chosen in zip(names, flags, strict=False) if chosen) for flags in (row, values > 0.5)]
        chances = dict(zip(names, map(float, values), strict=False))
        rows.append(Scored(f"d{index:03}", "tags", told[0], told[1], 0.9, chances))
    return ScoreTable(bundle, "v1", tuple(rows), {}, {"tags": "multilabel"})


def masks(pixels: Sequence[dict[tuple[str, str], int]], *, bundle: str = "new") -> ScoreTable:
    """A table of masks: for each the count of (true value, predicted value)."""
    rows = [
        Scored(f"d{i:03}", "mask", f"masks/{i}.png", "", 0.9, pixels=tuple((true, told, n) for (true, told), n in found.items()))
        for i, found in enumerate(pixels)
    ]
    return ScoreTable(bundle, "v1", tuple(rows), {}, {"mask": "segmentation"})


def drawn_sets(num_samples: int, seed: int, skill: float, bundle: str) -> ScoreTable:
    """Readers of the same samples: the truth and its difficulty hang on `seed`, the reader's own errors on its name too."""
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, *bundle.encode()])
    truth = shared.random((num_samples, len(NAMES))) < 0.35
    truth[:, 0] |= ~truth.any(axis=1)
    odds = (2 * truth - 1) * skill + shared.normal(0, 0.7, truth.shape) + own.normal(0, 0.7, truth.shape)
    return sets(truth, 1 / (1 + np.exp(-odds)), bundle=bundle)


def drawn_masks(num_samples: int, seed: int, skill: float, bundle: str) -> ScoreTable:
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, *bundle.encode()])
    counts = [shared.multinomial(300, shared.dirichlet(np.full(4, 0.5))) for _ in range(num_samples)]
    odds = skill + shared.normal(0, 0.5, num_samples) + own.normal(0, 0.4, num_samples)
    tables = []
    for row, chance in zip(counts, 1 / (1 + np.exp(-odds)), strict=True):
        hits = own.binomial(row, chance)
        found = {(NAMES[c], NAMES[c]): int(hits[c]) for c in range(4)}
        tables.append(found | {(NAMES[c], NAMES[(c + 1) % 4]): int(row[c] - hits[c]) for c in range(4)})
    return masks(tables, bundle=bundle)


DRAWN: dict[Task, Callable[[int, int, float, str], ScoreTable]] = {"multilabel": drawn_sets, "segmentation": drawn_masks}
METRIC: dict[Task, str] = {"multilabel": "tags/f1_macro", "segmentation": "mask/miou"}
TASKS: list[Task] = ["multilabel", "segmentation"]


def pair(task: Task, num_samples: int = 120, *, skill: float = 1.5, before: float = 1.0) -> tuple[ScoreTable, ScoreTable]:
    return DRAWN[task](num_samples, 0, skill, "new"), DRAWN[task](num_samples, 0, before, "old")


def gate(candidate: ScoreTable, champion: ScoreTable | None, policy: Policy, **more: object) -> Verdict:
    return decide(Case(candidate, champion, policy, champion_name="champion 3", **more))  # type: ignore[arg-type]


def answers(task: Task, new: ScoreTable, old: ScoreTable) -> tuple[Answers, Answers]:
    rows = [{(row.digest, row.truth): row for row in table.rows} for table in (new, old)]
    return read_pair(task, rows[0], rows[1])[1:]


def bootstrap(task: Task, new: ScoreTable, old: ScoreTable, *, seed: int = 0, num_resamples: int = 400) -> Resampled:
    measure = METRIC[task].partition("/")[2]
    readers = answers(task, new, old)
    functions = [measure_of(task, measure, reader) for reader in readers]
    num = len(new.rows)
    return resample(*functions, num_samples=num, num_differing=num, seed=seed, num_resamples=num_resamples)


@pytest.mark.parametrize("measure", SET_MEASURES)
@pytest.mark.parametrize("digits", [8, 1])  # one digit: many ties
def test_measures_of_label_sets_are_those_of_scikit_learn_on_each_resample(measure: str, digits: int) -> None:
    random = np.random.default_rng(1)
    truth = random.random((60, 4)) < [0.1, 0.3, 0.5, 0.8]
    scores = np.round(np.clip(truth * 0.3 + random.random(truth.shape) * 0.7, 0, 1), digits)
    table = sets(truth, scores)
    function = measure_of("multilabel", measure, answers("multilabel", table, table)[0])
    weights = np.stack([np.ones(60, dtype=int), *random.multinomial(60, np.full(60, 1 / 60), 5)], axis=1)
    found = function(weights.astype(float))
    for column, value in zip(weights.T, found, strict=True):
        repeated = [np.repeat(part, column, axis=0) for part in (truth, scores > 0.5, scores)]
        assert value == pytest.approx(SET_MEASURES[measure](*repeated), abs=1e-9)


@pytest.mark.parametrize("measure", MASK_MEASURES)
def test_measures_of_masks_are_those_of_scikit_learn_on_each_resample(measure: str) -> None:
    random = np.random.default_rng(2)
    # No pixel has the class 4, in truth or prediction; 3 is predicted, never true.
    pictures = [(random.integers(0, 3, 50), random.integers(0, 4, 50)) for _ in range(12)]
    table = masks([dict(_confusion(truth, guess)) for truth, guess in pictures])
    function = measure_of("segmentation", measure, answers("segmentation", table, table)[0])
    weights = np.stack([np.ones(12, dtype=int), *random.multinomial(12, np.full(12, 1 / 12), 5)], axis=1)
    found = function(weights.astype(float))
    for column, value in zip(weights.T, found, strict=True):
        truth, guess = (np.concatenate([np.tile(p[k], n) for p, n in zip(pictures, column, strict=True)]) for k in (0, 1))
        assert value == pytest.approx(MASK_MEASURES[measure](truth, guess), abs=1e-9)


def _confusion(truth: np.ndarray, guess: np.ndarray) -> list[tuple[tuple[str, str], int]]:
    found, counts = np.unique(np.stack([truth, guess]), axis=1, return_counts=True)
    return [((str(t), str(g)), int(n)) for (t, g), n in zip(found.T, counts, strict=True)]


@pytest.mark.parametrize("measure", ["f1_macro", "precision_macro", "recall_macro"])
def test_a_label_that_neither_occurs_nor_is_predicted_is_left_out_of_macro_means(measure: str) -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    table = sets(truth, np.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.6, 0.9, 0.3]]))
    value = measure_of("multilabel", measure, answers("multilabel", table, table)[0])(np.ones((3, 1)))[0]
    assert value == pytest.approx(SET_MEASURES[measure](truth[:, :2], np.array([[1, 0], [1, 0], [1, 1]]), None))


@pytest.mark.parametrize("num_samples", [10, 40, 200])
def test_the_bootstrap_of_a_mean_is_the_paired_t_test(num_samples: int) -> None:
    # Masks of one size: pixel accuracy is then a mean over samples, for which Student's test is the reference.
    random = np.random.default_rng(num_samples)
    hits = 500 + random.normal(0, 80, (2, num_samples)).astype(int) + random.normal(0, 60, num_samples).astype(int)
    hits[0] += 40
    new, old = (
        masks([{("a", "a"): int(n), ("a", "b"): 1000 - int(n)} for n in row], bundle=str(i)) for i, row in enumerate(hits)
    )
    functions = [measure_of("segmentation", "pixel_accuracy", reader) for reader in answers("segmentation", new, old)]
    found = resample(*functions, num_samples=num_samples, num_differing=num_samples, seed=0)
    expected = ttest_rel(hits[0] / 1000, hits[1] / 1000)
    low, high = expected.confidence_interval(0.95)
    assert found.gain.value == pytest.approx((hits[0] - hits[1]).mean() / 1000)
    assert (found.gain.low, found.gain.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.5, abs=0.01)


@pytest.mark.parametrize("task", TASKS)
def test_equal_readers_are_told_apart_no_more_often_than_the_level(task: Task) -> None:
    nights = 200
    tables = [(DRAWN[task](50, night, 1.0, "new"), DRAWN[task](50, night, 1.0, "old")) for night in range(nights)]
    found = [bootstrap(task, *both, seed=night).p_value for night, both in enumerate(tables)]
    assert np.mean(np.array(found) < 0.05) <= 0.08
    # Nor is the test asleep: p-values of equal readers are even.
    assert 0.12 <= np.mean(np.array(found) < 0.2) <= 0.28


@pytest.mark.parametrize("task", TASKS)
def test_few_samples_do_not_make_the_test_bold(task: Task) -> None:
    tables = [(DRAWN[task](8, night, 1.0, "new"), DRAWN[task](8, night, 1.0, "old")) for night in range(200)]
    assert np.mean([bootstrap(task, *both).p_value < 0.05 for both in tables]) <= 0.08


@pytest.mark.parametrize("task", TASKS)
def test_a_better_reader_is_found(task: Task) -> None:
    tables = [(DRAWN[task](80, night, 1.3, "new"), DRAWN[task](80, night, 0.9, "old")) for night in range(50)]
    found = [bootstrap(task, *both) for both in tables]
    assert np.mean([one.p_value < 0.05 and one.gain.low > 0 for one in found]) >= 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.floats(0.8, 1.4), st.sampled_from(TASKS))
def test_the_interval_leaves_out_zero_exactly_where_p_is_below_its_level(n: int, seed: int, skill: float, task: Task) -> None:
    found = bootstrap(task, DRAWN[task](n, seed, skill, "new"), DRAWN[task](n, seed, 1.0, "old"), num_resamples=200)
    assert (found.p_value < 0.05) == (found.gain.low > 0 or found.gain.high < 0)
    assert -1 <= found.gain.low <= found.gain.value <= found.gain.high <= 1
    assert found.new.low <= found.new.value <= found.new.high


def test_an_interval_of_few_differences_is_not_shifted() -> None:
    truth, odds = np.tile([True, False, False, False, False], (100, 1)), np.full((100, len(NAMES)), 0.1)
    odds[:, 0] = 0.9
    worse = odds.copy()
    worse[0, 0] = 0.2
    functions = [
        measure_of("multilabel", "accuracy", each) for each in answers("multilabel", sets(truth, odds), sets(truth, worse))
    ]
    gain = resample(*functions, num_samples=100, num_differing=1, seed=1, num_resamples=2000).gain
    assert (gain.value, gain.low) == (pytest.approx(0.01), 0.0)
    assert 100 * gain.high == pytest.approx(round(100 * gain.high), abs=1e-6), "a share of the samples"


def test_the_interval_of_a_mean_over_rare_labels_lies_around_its_estimate() -> None:
    # Resamples that leave out a rare label, or repeat its only sample, have a higher mean average precision.
    random, names = np.random.default_rng(3), [f"label{number}" for number in range(100)]
    truth = random.random((150, len(names))) < 0.01
    truth[:, 0] = True
    odds = [skill * truth - 3 + random.normal(0, 1, truth.shape) for skill in (4.0, 0.5)]
    tables = [sets(truth, 1 / (1 + np.exp(-each)), names=names) for each in odds]
    functions = [measure_of("multilabel", "average_precision", reader) for reader in answers("multilabel", *tables)]
    found = resample(*functions, num_samples=150, num_differing=150, seed=1, num_resamples=2000)
    for one in (found.new, found.gain):
        assert abs((one.low + one.high) / 2 - one.value) < 0.2 * (one.high - one.low), one


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from(TASKS))
def test_the_readers_exchanged_mirror_the_interval(n: int, seed: int, task: Task) -> None:
    new, old = DRAWN[task](n, seed, 1.2, "new"), DRAWN[task](n, seed, 1.0, "old")
    found, mirrored = bootstrap(task, new, old), bootstrap(task, old, new)
    assert (mirrored.gain.low, mirrored.gain.high) == pytest.approx((-found.gain.high, -found.gain.low), abs=1e-12)
    assert mirrored.p_value == found.p_value


@pytest.mark.parametrize("task", TASKS)
def test_a_clear_gain_is_promoted_with_its_numbers_in_words(task: Task) -> None:
    verdict = gate(*pair(task), Policy(METRIC[task]))
    figures = verdict.figures
    assert verdict.promoted
    assert verdict.reasons[0] == (
        f"holdout {METRIC[task]} {figures['metric']:.3f} ({figures['metric_low']:.3f} to {figures['metric_high']:.3f}) against "
        f"{figures['champion_metric']:.3f} of champion 3: {figures['gain']:+.3f} ({figures['gain_low']:+.3f} to "
        f"{figures['gain_high']:+.3f}) on 120 samples, paired bootstrap p < 0.001, below 0.0445, "
        "the first look's part of alpha 0.05"
    )
    assert verdict.reasons[1].endswith("at least min_gain 0")
    assert figures["gain"] == figures["metric_gain"] == pytest.approx(figures["metric"] - figures["champion_metric"])
    assert 0 < figures["gain_low"] < figures["gain"] < figures["gain_high"]
    assert figures["num_samples"] == 120


@pytest.mark.parametrize("task", TASKS)
def test_an_unproven_gain_or_a_proven_loss_is_not_promoted(task: Task) -> None:
    unproven = gate(*pair(task, skill=1.0, before=1.0), Policy(METRIC[task]))
    assert not unproven.promoted
    assert "not below 0.0445" in unproven.reasons[0]
    better, worse = pair(task)
    loss = gate(worse, better, Policy(METRIC[task]))
    assert not loss.promoted
    assert "and for the worse" in loss.reasons[0]
    assert "less than min_gain 0" in loss.reasons[1]


@pytest.mark.parametrize("task", TASKS)
def test_a_proven_gain_below_min_gain_is_not_promoted(task: Task) -> None:
    gain = gate(*pair(task), Policy(METRIC[task])).figures["gain"]
    assert gate(*pair(task), Policy(METRIC[task], min_gain=gain)).promoted
    verdict = gate(*pair(task), Policy(METRIC[task], min_gain=gain + 0.01))
    assert not verdict.promoted
    assert "less than min_gain" in verdict.reasons[1]


@pytest.mark.parametrize("task", TASKS)
def test_a_verdict_repeats_exactly_whatever_the_order_of_rows(task: Task) -> None:
    new, old = pair(task, 40)
    mixed = replace(new, rows=new.rows[::-1])
    assert gate(new, old, Policy(METRIC[task])) == gate(mixed, old, Policy(METRIC[task]))
    again = gate(replace(new, bundle_digest="newer"), old, Policy(METRIC[task]))
    assert again.figures["gain_low"] != gate(new, old, Policy(METRIC[task])).figures["gain_low"]


@pytest.mark.parametrize("metric", ["tags/f1_macro", "tags/accuracy", "tags/auroc", "tags/average_precision", "mask/miou"])
def test_a_reader_that_answers_the_same_proves_nothing(metric: str) -> None:
    new = pair("segmentation" if metric == "mask/miou" else "multilabel")[0]
    verdict = gate(new, replace(new, bundle_digest="old"), Policy(metric))
    assert not verdict.promoted
    assert verdict.figures["p_value"] == 1
    assert (verdict.figures["gain_low"], verdict.figures["gain"], verdict.figures["gain_high"]) == (0, 0, 0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_a_handful_of_samples_proves_nothing(task: Task, num_samples: int) -> None:
    verdict = gate(*pair(task, num_samples, skill=6.0, before=-6.0), Policy(METRIC[task]))
    assert not verdict.promoted
    assert verdict.figures["p_value"] >= 0.125
    assert (verdict.figures["gain_low"], verdict.figures["gain_high"]) == (-1, 1)
    assert "add test samples" in verdict.reasons[-1]


def test_few_samples_read_differently_prove_no_more_than_their_signs() -> None:
    truth = np.ones((200, 1), dtype=bool)
    right, wrong = np.full((200, 1), 0.9), np.full((200, 1), 0.9)
    wrong[:4] = 0.1
    more_wrong = wrong.copy()
    more_wrong[4:8] = 0.1
    verdict = gate(sets(truth, wrong), sets(truth, more_wrong, bundle="old"), Policy("tags/accuracy"))
    assert verdict.figures["p_value"] == 1 / 2**4
    assert verdict.figures["gain_low"] <= 0
    assert "only 4 of 200 samples are read differently" in verdict.reasons[-1]
    best = gate(sets(truth, right), sets(truth, wrong, bundle="old"), Policy("tags/accuracy"))
    assert "misreads only 4 of 200 samples: even a model without a mistake would reach no less than p = 0.062" in best.reasons[-1]


@pytest.mark.parametrize("measure", SET_MEASURES)
def test_a_label_that_vanishes_from_resamples_or_that_the_champion_never_heard_of_does_no_harm(measure: str) -> None:
    random = np.random.default_rng(3)
    truth = np.zeros((30, 3), dtype=bool)
    truth[:, 0], truth[:15, 1], truth[7, 2] = True, True, True  # always, half the time, once
    scores = np.clip(truth * 0.6 + random.random(truth.shape) * 0.4, 0, 1)
    old = sets(truth, scores, bundle="old")
    rows = tuple(replace(row, probabilities={name: row.probabilities[name] for name in NAMES[:2]}) for row in old.rows)
    rows = tuple(replace(row, predicted=row.predicted.replace("|cat", "")) for row in rows)
    if measure == "auroc":
        assert math.isfinite(gate(sets(truth, scores), replace(old, rows=rows), Policy("tags/auroc")).figures["gain"])
        return
    verdict = gate(sets(truth, scores), replace(old, rows=rows), Policy(f"tags/{measure}"))
    known = scores * [1, 1, 0]
    expected = SET_MEASURES[measure](truth, scores > 0.5, scores) - SET_MEASURES[measure](truth, known > 0.5, known)
    assert verdict.figures["gain"] == pytest.approx(expected)
    assert all(math.isfinite(value) for value in verdict.figures.values())


def test_a_first_model_for_masks_is_held_against_the_value_that_most_pixels_have() -> None:
    new = drawn_masks(60, 4, 1.0, "new")
    totals = {name: sum(n for row in new.rows for true, _, n in row.pixels if true == name) for name in NAMES}
    top = max(totals, key=totals.__getitem__)
    verdict = gate(new, None, Policy("mask/pixel_accuracy"))
    assert verdict.promoted
    assert f"of always answering {top!r}, what most pixels are" in verdict.reasons[0]
    assert verdict.figures["baseline_metric"] == pytest.approx(totals[top] / sum(totals.values()))
    flat = masks([_always(row, top) for row in new.rows])
    assert not gate(flat, None, Policy("mask/pixel_accuracy")).promoted
    assert gate(flat, None, Policy("mask/miou")).figures["gain"] == 0


def _always(row: Scored, value: str) -> dict[tuple[str, str], int]:
    return {(name, value): sum(n for true, _, n in row.pixels if true == name) for name in NAMES}


@pytest.mark.parametrize("measure", SET_MEASURES)
def test_a_first_model_for_label_sets_is_held_against_how_often_each_label_occurs(measure: str) -> None:
    random = np.random.default_rng(5)
    truth = random.random((80, 3)) < [0.8, 0.6, 0.2]
    truth[:, 0] |= ~truth.any(axis=1)
    scores = np.clip(truth * 0.45 + random.random(truth.shape) * 0.55, 0, 1)
    verdict = gate(sets(truth, scores), None, Policy(f"tags/{measure}"))
    shares = np.tile(truth.mean(axis=0), (80, 1))
    assert verdict.promoted
    assert "of always answering each label's share of the samples (above a half: 'ant', 'bee')" in verdict.reasons[0]
    assert verdict.figures["baseline_metric"] == pytest.approx(SET_MEASURES[measure](truth, shares > 0.5, shares))
    assert "champion_metric" not in verdict.figures
    assert not gate(sets(truth, shares), None, Policy(f"tags/{measure}")).promoted


@pytest.mark.parametrize("task", TASKS)
def test_the_rules_around_the_test_hold_for_every_task(task: Task) -> None:
    (new, old), policy = pair(task, 12), Policy(METRIC[task])
    assert "is the champion already" in gate(new, new, policy).reasons[0]
    assert "rolled this very model back" in gate(new, old, policy, withdrawn=True).reasons[0]
    assert "no sample" in gate(replace(new, rows=()), None, policy).reasons[0]
    assert "does not predict" in gate(new, replace(old, rows=()), policy).reasons[0]
    other = gate(new, replace(old, tasks={}), policy)
    assert f"as classification, the candidate as {task}" in other.reasons[0]
    assert not any(gate(new, one, policy).promoted for one in (new, replace(old, rows=()), replace(old, tasks={})))
    with pytest.raises(AskedWrongly, match="different samples"):
        gate(new, replace(old, rows=old.rows[1:]), policy)
    with pytest.raises(AskedWrongly, match="data version 'v1', the champion on 'v0'"):
        gate(new, replace(old, data_version="v0"), policy)


def test_each_distinct_image_counts_once() -> None:
    new, old = pair("multilabel", 20)
    twice = replace(new, rows=new.rows + new.rows[:5])
    found, alone = (gate(each, old, Policy("tags/f1_macro")) for each in (twice, new))
    assert found.figures == alone.figures
    assert " on 20 samples, 5 repeated ones left out, paired bootstrap" in found.reasons[0]
    assert found.reasons[0].replace(", 5 repeated ones left out", "") == alone.reasons[0]
    assert found.reasons[1:] == alone.reasons[1:]


def test_masks_whose_ignored_values_differ_are_not_compared() -> None:
    new = masks([{("a", "a"): 50, ("b", "b"): 20}, {("a", "b"): 10, ("b", "b"): 20}])
    old = masks([{("a", "a"): 50}, {("a", "b"): 10}], bundle="old")
    verdict = gate(new, old, Policy("mask/miou"))
    assert not verdict.promoted
    assert "only one of them counts: b" in verdict.reasons[0]


def test_masks_of_other_sizes_are_refused() -> None:
    new, old = masks([{("a", "a"): 50}, {("b", "b"): 9}]), masks([{("a", "a"): 50}, {("b", "b"): 36}], bundle="old")
    with pytest.raises(AskedWrongly, match="different pixels of 1 of 2 masks"):
        gate(new, old, Policy("mask/miou"))


def test_masks_of_which_every_pixel_is_ignored_are_no_samples() -> None:
    new, old = pair("segmentation", 10)
    void = Scored("void", "mask", "masks/void.png", "", 0.0)
    more = [replace(table, rows=(*table.rows, void)) for table in (new, old)]
    assert gate(more[0], more[1], Policy("mask/miou")) == gate(new, old, Policy("mask/miou"))
    assert "no sample" in gate(masks([{}]), None, Policy("mask/miou")).reasons[0]


def test_a_measure_that_cannot_be_told_is_refused_with_those_that_can() -> None:
    for table, metric, known in (
        (pair("multilabel")[0], "tags/ece", "auroc"),
        (pair("segmentation")[0], "mask/f1_macro", "miou"),
    ):
        with pytest.raises(AskedWrongly, match=f"allowed: .*{known}"):
            gate(table, None, Policy(metric))
    truth = np.ones((9, 1), dtype=bool)
    with pytest.raises(AskedWrongly, match="not defined on the 9 samples"):
        gate(sets(truth, truth * 0.9), None, Policy("tags/auroc"))
    bare = tuple(replace(row, probabilities={}) for row in pair("multilabel")[0].rows)
    with pytest.raises(AskedWrongly, match="score both models again"):
        gate(ScoreTable("new", "v1", bare, {}, {"tags": "multilabel"}), None, Policy("tags/auroc"))
