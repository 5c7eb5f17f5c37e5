"""The guards that read score rows: parts, calibration and flips, against independent references on random tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from flows.gate import Case, Policy, decide
from flows.gate.bootstrap import resample
from flows.gate.guards.calibration import calibration
from flows.gate.guards.negative_flips import negative_flips
from flows.gate.guards.worst_class import worst_class
from flows.gate.guards.worst_group import worst_group
from flows.gate.measures import Answers, measure_of
from flows.gate.parts import holm, least_samples, pool_small
from flows.gate.reliability import calibration_error, gaps_of
from flows.records import Finding, ScoreTable, Severity, Verdict
from flows.registry import LedgerEntry
from heads.catalogue import Task
from heads.tasks.rows import Scored

METRIC = "label/accuracy"
CLASSES = np.array(["ant", "bee", "cat", "dog"])
WARN: Mapping[str, Severity] = dict.fromkeys(("worst_class", "worst_group", "calibration", "negative_flips"), "warn")


def table(rows: list[Scored], bundle: str, task: Task = "classification", metric: str = METRIC) -> ScoreTable:
    right = float(np.mean([row.truth == row.predicted for row in rows]))
    return ScoreTable(bundle, "v1", tuple(rows), {metric: right}, {"label": task})


def rows_of(truths: NDArray[np.str_], guesses: NDArray[np.str_], sure: NDArray[np.float64] | float = 0.9) -> list[Scored]:
    told = np.broadcast_to(sure, len(truths))
    return [
        Scored(f"{i:032x}", "label", str(t), str(g), float(p))
        for i, (t, g, p) in enumerate(zip(truths, guesses, told, strict=True))
    ]


def misread(random: np.random.Generator, truths: NDArray[np.str_], share: NDArray[np.float64] | float) -> NDArray[np.str_]:
    """The truths, of which about so many are replaced by another class."""
    others = CLASSES[(np.searchsorted(CLASSES, truths) + random.integers(1, len(CLASSES), len(truths))) % len(CLASSES)]
    return np.where(random.random(len(truths)) < share, others, truths)


def case_of(new: list[Scored], old: list[Scored] | None, groups: Mapping[str, str] | None = None, **more: object) -> Case:
    policy = Policy(METRIC, guards=WARN)
    champion = None if old is None else table(old, "old")
    return Case(table(new, "new"), champion, policy, {"label": "ant"}, champion_name="champion 3", groups=groups or {}, **more)  # type: ignore[arg-type]


def found(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def test_holm_counts_p_values_as_statsmodels_does() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        values = random.random(size) ** 4
        assert holm(values.tolist()) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)


def test_recall_of_each_class_is_compared_as_scikit_learn_and_statsmodels_do() -> None:
    random = np.random.default_rng(1)
    truths = random.choice(CLASSES, 400)
    # The worst class is the bee, by far.
    new = misread(random, truths, np.where(truths == "bee", 0.4, 0.05))
    old = misread(random, truths, 0.1)
    finding = found(worst_class(case_of(rows_of(truths, new), rows_of(truths, old))))
    p_values, recalls = {}, {}
    for name in CLASSES:
        mine = truths == name
        fixed, broken = (
            int((mine & hit & ~miss).sum()) for hit, miss in [(new == truths, old == truths), (old == truths, new == truths)]
        )
        two_sided = float(mcnemar_of([[0, broken], [fixed, 0]], exact=True).pvalue)
        p_values[name] = two_sided / 2 if broken > fixed else 1 - two_sided / 2 if fixed > broken else 1.0
        recalls[name] = [recall_score(truths, guess, labels=[name], average="macro") for guess in (new, old)]
    assert not finding.passed
    assert finding.figures["p_value"] == pytest.approx(multipletests(list(p_values.values()), method="holm")[1].min())
    assert [finding.figures["metric"], finding.figures["champion_metric"]] == pytest.approx(recalls["bee"])
    assert "worse recall than champion 3 on 1 class (at 5%, by Holm's rule over 4): bee 0." in finding.words
    assert finding.figures["num_worse"] == 1


def test_accuracy_of_each_group_is_that_of_fairlearn() -> None:
    random = np.random.default_rng(2)
    truths, sites = random.choice(CLASSES, 600), random.choice(["north", "south", "west"], 600)
    new = misread(random, truths, np.where(sites == "south", 0.3, 0.02))
    old = misread(random, truths, 0.1)
    new_rows, old_rows = rows_of(truths, new), rows_of(truths, old)
    groups = {row.digest: str(site) for row, site in zip(new_rows, sites, strict=True)}
    case = case_of(new_rows, old_rows, groups)
    finding = found(worst_group(case))
    frames = [MetricFrame(metrics=accuracy_score, y_true=truths, y_pred=guess, sensitive_features=sites) for guess in (new, old)]
    assert not finding.passed
    assert [finding.figures["metric"], finding.figures["champion_metric"]] == pytest.approx([f.by_group["south"] for f in frames])
    assert finding.figures["num_samples"] == (sites == "south").sum()
    assert "worse accuracy than champion 3 on 1 group" in finding.words
    assert "south" in finding.words
    same = found(worst_group(case_of(old_rows, old_rows, groups)))
    assert same.passed
    assert same.figures["gain"] == 0
    assert worst_group(case_of(new_rows, None, groups)) is None
    assert worst_group(case_of(new_rows, old_rows)) is None, "no sample is in a group"


def test_parts_too_small_to_be_proven_worse_count_together() -> None:
    # The least n with 2 ** -n below 0.05 / parts.
    assert [least_samples(parts) for parts in (1, 2, 37)] == [5, 6, 10]
    sizes = {"a": 30, "b": 4, "c": 5, "d": 40}
    parts = pool_small({name: [(f"{name}{i}", "x") for i in range(size)] for name, size in sizes.items()})
    assert {name: len(keys) for name, keys in parts.items()} == {"a": 30, "d": 40, "2 of fewer than 7 samples each, together,": 9}
    alone = pool_small({"a": [("a", "x")] * 30, "b": [("b", "x")]})
    assert list(alone) == ["a", "b"], "a single small part keeps its name"


def test_no_part_of_equal_models_is_found_worse_more_often_than_said() -> None:
    random, worse, times = np.random.default_rng(3), 0, 300
    for _ in range(times):
        truths = random.choice(CLASSES, 200)
        new, old = (rows_of(truths, misread(random, truths, 0.2)) for _ in range(2))
        worse += not found(worst_class(case_of(new, old))).passed
    assert worse / times <= 0.05


def test_labels_are_compared_one_by_one() -> None:
    random = np.random.default_rng(4)
    there = random.random((200, 2)) < 0.5
    wrong = np.zeros_like(there)
    wrong[:40, 1] = True

    def scored(guess: NDArray[np.bool_]) -> list[Scored]:
        cells = [["|".join(np.array(["day", "wet"])[row]) for row in marks] for marks in (there, guess)]
        chances = [{"day": 0.9 if day else 0.1, "wet": 0.8 if wet else 0.2} for day, wet in guess]
        return [Scored(f"{i}", "label", t, g, 0.8, p) for i, (t, g, p) in enumerate(zip(*cells, chances, strict=True))]

    new, old = (table(scored(there ^ errors), name, "multilabel") for name, errors in [("new", wrong), ("old", wrong & False)])
    case = Case(new, old, Policy("label/f1_macro"), champion_name="champion 3", groups={f"{i}": "ab"[i % 2] for i in range(200)})
    finding = found(worst_class(case))
    assert not finding.passed
    assert "worse accuracy than champion 3 on 1 label (at 5%, by Holm's rule over 2): wet 0.800 against 1.000" in finding.words
    grouped = found(worst_group(case))
    assert not grouped.passed
    assert "worse f1_macro than champion 3 on 2 groups" in grouped.words
    flips = found(negative_flips(case))
    assert (flips.figures["num_flips"], flips.passed) == (40, False)
    ece = found(calibration(case))
    sides = torch.tensor([[p["day"], p["wet"]] for p in (dict(row.probabilities) for row in new.rows)], dtype=torch.float64)
    sure, right = torch.maximum(sides, 1 - sides), (sides >= 0.5) == torch.tensor(there)
    expected = binary_calibration_error(sure.flatten(), right.flatten().long(), n_bins=15, norm="l1")
    assert ece.figures["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_a_value_of_masks_is_compared_by_its_iou() -> None:
    random = np.random.default_rng(5)
    truths = random.integers(0, 3, (30, 50))
    new, old = truths.copy(), truths.copy()
    new[(truths == 2) & (random.random(truths.shape) < 0.4)] = 0
    old[random.random(truths.shape) < 0.05] = 1

    def scored(guesses: NDArray[np.int64]) -> list[Scored]:
        rows = []
        for i, (truth, guess) in enumerate(zip(truths, guesses, strict=True)):
            pairs, counts = np.unique(np.stack([truth, guess]), axis=1, return_counts=True)
            pixels = tuple((str(t), str(g), int(c)) for (t, g), c in zip(pairs.T, counts, strict=True))
            rows.append(Scored(f"{i}", "label", f"masks/{i}.png", "", 0.9, pixels=pixels))
        return rows

    tables = [table(scored(guess), name, "segmentation", "label/miou") for name, guess in [("new", new), ("old", old)]]
    case = Case(*tables, Policy("label/miou"), champion_name="champion 3", groups={f"{i}": "ab"[i % 2] for i in range(30)})
    finding = found(worst_class(case))
    assert not finding.passed
    ious = [jaccard_score(truths.ravel(), guess.ravel(), labels=[2], average="macro") for guess in (new, old)]
    lost = {value: jaccard_score(truths.ravel(), new.ravel(), labels=[value], average="macro") for value in (0, 2)}
    assert "worse IoU than champion 3 on 2 values" in finding.words
    assert f"2 {lost[2]:.3f} against {ious[1]:.3f}" in finding.words
    assert f"0 {lost[0]:.3f} against" in finding.words
    assert found(worst_group(case)).figures["num_parts"] == 2
    assert calibration(case) is None
    assert negative_flips(case) is None


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    random = np.random.default_rng(6)
    probabilities = random.dirichlet(np.full(4, 0.4), 500)
    truths = CLASSES[[random.choice(4, p=row) for row in probabilities]]
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    rows = {
        name: rows_of(truths, CLASSES[told.argmax(axis=1)], told.max(axis=1))
        for name, told in [("new", sharp), ("old", probabilities)]
    }
    finding = found(calibration(case_of(rows["new"], rows["old"])))
    labels = torch.tensor(np.searchsorted(CLASSES, truths))
    for name, told in [("ece", sharp), ("champion_ece", probabilities)]:
        expected = multiclass_calibration_error(torch.tensor(told), labels, num_classes=4, n_bins=15, norm="l1")
        assert finding.figures[name] == pytest.approx(float(expected), abs=1e-6)
    assert not finding.passed
    assert ", above 0.05; " in finding.words
    assert found(calibration(case_of(rows["old"], rows["new"]))).passed
    alone = found(calibration(case_of(rows["new"], None)))
    assert not alone.passed, "the bound is for a first model, too"
    assert "champion" not in alone.words


@pytest.mark.parametrize(("num", "times"), [(20, 300), (200, 40)])
def test_a_model_whose_probabilities_hold_is_seldom_found_to_be_otherwise(num: int, times: int) -> None:
    random, found_wrong = np.random.default_rng(10), 0
    for _ in range(times):
        sure, other = random.beta(4, 1, (2, num))
        truths = np.full(num, "ant")
        new, old = (rows_of(truths, np.where(random.random(num) < p, "ant", "bee"), p) for p in (sure, other))
        found_wrong += not found(calibration(case_of(new, old))).passed
    assert found_wrong / times <= 0.05


def test_an_interval_of_the_calibration_error_that_leaves_the_error_out_is_said_to_be_without_its_bias() -> None:
    random = np.random.default_rng(1)
    sure = random.uniform(0.3, 0.95, 60)
    truths = np.full(60, "ant")
    held, sharp = (rows_of(truths, np.where(random.random(60) < sure, "ant", "bee"), told) for told in (sure, sure**0.5))
    finding = found(calibration(case_of(held, sharp)))
    figures = finding.figures
    assert figures["ece"] > figures["ece_high"], "chance alone makes an error"
    assert f"(ECE) {figures['ece']:.3f} (bias-corrected {figures['ece_low']:.3f} to {figures['ece_high']:.3f})" in finding.words
    above = f"{figures['above']:+.3f} (bias-corrected {figures['above_low']:+.3f} to {figures['above_high']:+.3f})"
    assert finding.words.endswith(above)


def test_the_interval_of_the_calibration_error_is_the_basic_one_of_scipy() -> None:
    random = np.random.default_rng(7)
    sure = random.uniform(0.25, 1, 120)
    truths = np.full(120, "ant")
    new, old = (np.where(random.random(120) < sure**power, "ant", "bee") for power in (2.0, 1.0))
    rows = [rows_of(truths, guess, sure) for guess in (new, old)]
    case = case_of(*rows)
    gaps = gaps_of("classification", case.after, case.before)
    assert gaps is not None
    own, above = calibration_error(*gaps, seed=0)
    right = [guess == truths for guess in (new, old)]

    def error(hits: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
        bins = np.minimum((chances * 15).astype(int), 14)
        return sum(abs((hits[bins == b] - chances[bins == b]).sum()) for b in set(bins.tolist())) / len(chances)

    for interval, statistic in [
        (own, lambda one, _, chances: error(one, chances)),
        (above, lambda one, other, chances: error(one, chances) - error(other, chances)),
    ]:
        expected = bootstrap((*right, sure), statistic, paired=True, vectorized=False, n_resamples=2000, method="basic", rng=0)
        assert interval.value == pytest.approx(statistic(*right, sure), abs=1e-9)
        assert [interval.low, interval.high] == pytest.approx([*expected.confidence_interval], abs=0.01)


def test_negative_flips_have_the_interval_of_statsmodels_and_name_the_surest() -> None:
    truths = np.full(200, "ant")
    old, new, sure = truths.copy(), truths.copy(), np.full(200, 0.6)
    old[:30], new[20:36] = "bee", "cat"  # 20 fixed, 6 broken
    sure[33] = 0.99
    finding = found(negative_flips(case_of(rows_of(truths, new, sure), rows_of(truths, old, sure))))
    assert finding.figures["num_flips"] == 6
    interval = proportion_confint(6, 200, method="wilson")
    assert [finding.figures["low"], finding.figures["high"]] == pytest.approx(interval)
    assert finding.passed
    assert "the candidate is wrong where champion 3 was right on 6 samples of 200: 0.030" in finding.words
    assert finding.notes[0].startswith(f"negative flips that the candidate is surest of: {33:032x}"[:-20])
    assert "(ant read as cat, 0.99)" in finding.notes[0]
    case = replace(case_of(rows_of(truths, new, sure), rows_of(truths, old, sure)), files={f"{33:032x}": "images/ant.png"})
    assert ": images/ant.png (ant read as cat, 0.99), 0000" in found(negative_flips(case)).notes[0]
    many = found(negative_flips(case_of(rows_of(truths, np.full(200, "cat")), rows_of(truths, truths))))
    assert (many.passed, many.figures["rate"]) == (False, 1.0)
    assert negative_flips(case_of(rows_of(truths, new), None)) is None


def verdict_of(new: list[Scored], old: list[Scored], groups: Mapping[str, str], **guards: Severity) -> Verdict:
    case = case_of(new, old, groups)
    return decide(replace(case, policy=replace(case.policy, guards={**WARN, **guards})))


def test_a_verdict_says_in_order_what_each_guard_found() -> None:
    random = np.random.default_rng(8)
    truths = random.choice(CLASSES, 800)
    old, new = misread(random, truths, 0.3), misread(random, truths, 0.1)
    groups = {f"{i:032x}": "ab"[i % 2] for i in range(800)}
    verdict = verdict_of(rows_of(truths, new), rows_of(truths, old), groups)
    assert verdict.promoted
    names = ["paired_test", "min_gain", "worst_class", "worst_group", "calibration", "negative_flips"]
    assert [one.guard for one in verdict.findings] == names
    assert [one.blocks for one in verdict.findings] == [True, True, False, False, False, False]
    assert repr(verdict) == repr(verdict_of(rows_of(truths, new), rows_of(truths, old), groups)), "a verdict repeats exactly"


def test_the_paired_bootstrap_gives_the_percentiles_of_scipy() -> None:
    random = np.random.default_rng(9)
    ones = np.ones((300, 1))
    hits = [(random.random((300, 1)) < share).astype(float) for share in (0.85, 0.75)]
    new, old = (measure_of("multilabel", "accuracy", Answers(ones, each, each)) for each in hits)
    found = resample(new, old, num_samples=300, num_differing=300, seed=0)
    rows = [each[:, 0] for each in hits]
    expected = bootstrap(rows, lambda a, b, axis: (a - b).mean(axis=axis), paired=True, method="percentile", rng=0)
    assert found.gain.value == pytest.approx(rows[0].mean() - rows[1].mean())
    assert [found.gain.low, found.gain.high] == pytest.approx([*expected.confidence_interval], abs=0.005)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("right", [(True, True), (True, False), (False, True), (False, False)])
def test_guards_judge_a_holdout_of_one_or_two_samples(num: int, right: tuple[bool, bool]) -> None:
    truths = np.full(num, "ant")
    new, old = (rows_of(truths, np.full(num, "ant" if ok else "bee"), 1.0) for ok in right)
    case = case_of(new, old, {f"{i:032x}": str(i) for i in range(num)})
    verdict = decide(case)
    assert not verdict.promoted
    for finding in verdict.findings:
        assert all(np.isfinite(value) for value in finding.figures.values()), finding
    alone = {finding.guard: finding for finding in decide(case_of(new, None)).findings}
    assert alone["calibration"].figures["ece"] == (0.0 if right[0] else 1.0)


def test_a_finding_that_was_written_before_guards_could_warn_blocks() -> None:
    old = {"guard": "min_gain", "passed": False, "words": "too little", "figures": {}, "notes": []}
    line = {
        **dict.fromkeys(("kind", "name", "version", "data_version", "variant_id", "work_key"), "x"),
        **{"time": 1.0, "promoted": False, "reasons": ["too little"], "champion_before": None, "champion_after": None},
    }
    assert LedgerEntry.from_json(json.dumps(line | {"findings": [old]})).findings == (Finding("min_gain", False, "too little"),)
    assert LedgerEntry.from_json(json.dumps(line | {"findings": [old | {"blocks": False}]})).findings[0].blocks is False
