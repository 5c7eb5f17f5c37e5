"""The account of a champion's reign: when the holdout may be asked and of whom, what is said of it, what is proven."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from flows import job, mlflow_tags
from flows.gate import Account, Case, Policy, decide
from flows.gate.account import Kind, first_level, is_proven, least_z, look_at_mean
from flows.gate.case import rows_of
from flows.gate.measures import Answers, measure_of
from flows.gate.recipe import contributions, sample_values
from flows.job.holdout.scores import write_scores
from flows.model_version import ModelVersion
from flows.records import Finding, ScoreTable, Verdict
from flows.registry import LedgerEntry
from flows.stages.account import SECONDS_A_DAY, account_of
from heads.catalogue import Task
from heads.tasks.rows import Scored
from tests.flows import test_gate_bootstrap as bootstrap

METRIC, POLICY = "label/accuracy", Policy("label/accuracy")


def table(right: NDArray[np.bool_], bundle: str, first: int = 0, version: str = "v1") -> ScoreTable:
    rows = tuple(Scored(f"d{i + first}", "label", "cat", "cat" if ok else "dog", 0.9) for i, ok in enumerate(right))
    return ScoreTable(bundle, version, rows, {METRIC: float(right.mean())})


def nights(gain: float, n: int = 1000, count: int = 7, seed: int = 0) -> tuple[ScoreTable, list[ScoreTable]]:
    """A champion, and challengers that read so many more of the samples, each with a luck of its own."""
    random = np.random.default_rng(seed)
    chances = random.beta(0.45, 0.05, n)
    learnt = random.random(n) < gain / 0.1
    champion = table(random.random(n) < chances, "old")
    return champion, [table((random.random(n) < chances) | learnt, f"night{night}") for night in range(count)]


def case_of(champion: ScoreTable, challengers: list[ScoreTable], *, looks: int = 1, days: float = 7.0) -> Case:
    account = Account(looks, days, tuple(challengers[:-1]))
    return Case(challengers[-1], champion, POLICY, champion_name="champion 3", account=account, recipe="r")


@pytest.mark.parametrize(
    ("looks", "days", "earlier", "due"),
    [(0, math.inf, 0, "first"), (1, 6.8, 6, "weekly"), (1, 6.5, 6, "none"), (1, 30.0, 5, "none"), (9, 8.0, 6, "weekly")],
)
def test_the_holdout_is_asked_of_the_first_challenger_and_then_weekly_of_seven(
    looks: int, days: float, earlier: int, due: Kind
) -> None:
    assert Account(looks, days, (ScoreTable("", "", (), {}),) * earlier).next_look == due


def test_between_two_looks_nothing_is_said_of_the_holdout() -> None:
    champion, challengers = nights(0.08, count=3)
    for days, words in (
        (2.0, "challenger 3 of 7 of this recipe, and the next look at the holdout is due in 5 days"),
        (9.0, "challenger 3 of 7 of this recipe"),
    ):
        verdict = decide(case_of(champion, challengers, days=days))
        assert not verdict.promoted
        assert verdict.reasons == (f"gathering evidence against champion 3: {words}",)
        assert verdict.findings == (
            Finding("paired_test", False, verdict.reasons[0], {"num_challengers": 3.0, "num_looks": 1.0}),
        ), "neither a gain nor a p-value, nor the plan's measure"


def test_a_better_recipe_is_promoted_by_the_mean_of_its_last_seven_with_its_figures() -> None:
    champion, challengers = nights(0.03)
    verdict = decide(case_of(champion, challengers, looks=3))
    assert verdict.promoted
    figures = verdict.figures
    assert figures["look"] == 4
    assert figures["z"] >= figures["least_z"]
    assert (
        f"look 4 at the challengers of champion 3: the mean of the last 7 of this recipe gains {figures['gain']:+.4f}"
        in (verdict.reasons[0])
    )
    assert [one.guard for one in verdict.findings] == ["paired_test", "min_gain"]
    assert (verdict.metric, verdict.recipe) == (METRIC, "r")
    assert not decide(replace(case_of(champion, challengers, looks=3), policy=replace(POLICY, min_gain=0.2))).promoted


@pytest.mark.parametrize("task", bootstrap.TASKS)
def test_label_sets_and_masks_are_looked_at_by_what_samples_add_to_the_measure(task: Task) -> None:
    draw, policy = bootstrap.DRAWN[task], Policy(bootstrap.METRIC[task])
    champion = draw(150, 0, 1.0, "old")

    def night(number: int, skill: float) -> ScoreTable:
        return draw(150, 0, skill, f"night{number}")

    better, equal = ([night(number, skill) for number in range(7)] for skill in (1.5, 1.0))
    verdict = decide(replace(case_of(champion, better), policy=policy))
    assert verdict.promoted
    alone = [decide(Case(challenger, champion, policy)).figures["gain"] for challenger in better]
    assert verdict.figures["gain"] == pytest.approx(np.mean(alone), abs=1e-3)
    assert verdict.figures["newest_gain"] == pytest.approx(alone[-1], abs=1e-3)
    assert not decide(replace(case_of(champion, equal), policy=policy)).promoted


def test_a_weekly_look_that_does_not_decide_tells_no_more_than_how_many_labels_would() -> None:
    champion, challengers = nights(0.01)
    verdict = decide(case_of(champion, challengers))
    assert not verdict.promoted
    assert verdict.reasons[0].endswith("is not proven better; about 2,000 more labels would decide")
    assert verdict.figures.keys() == {"num_samples", "look", "least_z"}
    equal = decide(case_of(*nights(0.0, seed=4)))
    assert equal.reasons[0].endswith("is not proven better, and nothing points that way yet")


def test_a_newest_challenger_that_is_behind_the_champion_is_not_promoted_by_its_predecessors() -> None:
    champion, challengers = nights(0.05)
    worse = np.array([row.predicted == "cat" for row in champion.rows])
    worse[np.flatnonzero(worse)[:1]] = False
    assert decide(case_of(champion, challengers)).promoted
    behind = case_of(champion, [*challengers[:-1], table(worse, "worse")])
    assert behind.mean_look.z > least_z(0.05), "the mean alone would do"
    assert not decide(behind).promoted


def test_nights_of_a_grown_holdout_are_compared_on_all_of_it_by_those_that_were_scored_there() -> None:
    champion, challengers = nights(0.03, n=600)
    grown = np.ones(200, dtype=bool)
    more = [replace(each, rows=each.rows + table(grown, "x", 600).rows) for each in (champion, *challengers[3:])]
    all_of_them = [*challengers[:3], *more[1:]]
    values, before = sample_values(
        [rows_of(each, "label") for each in all_of_them], rows_of(more[0], "label"), "classification", "accuracy"
    )
    assert values.shape == before.shape == (7, 800)
    here = {row.digest: float(row.predicted == "cat") for row in challengers[0].rows}
    expected = [here.get(digest, math.nan) for digest in sorted(row.digest for row in more[0].rows)]
    assert np.array_equal(values[0], expected, equal_nan=True)
    assert np.array_equal(np.isnan(values), np.isnan(before))
    assert not np.isnan(values[3:]).any()
    look = case_of(more[0], all_of_them).mean_look
    right = {row.digest: row.predicted == "cat" for row in more[0].rows}
    gains = [
        np.mean([row.predicted == "cat" for each in all_of_them for row in each.rows if row.digest == digest]) - right[digest]
        for digest in right
    ]
    assert (look.num_samples, look.gain) == (800, pytest.approx(np.mean(gains)))
    assert look.z == pytest.approx(np.mean(gains) / np.std(gains, ddof=1) * math.sqrt(800))


@pytest.mark.parametrize("task", bootstrap.TASKS)
def test_other_measures_are_of_the_samples_that_each_challenger_was_scored_on(task: Task) -> None:
    draw, metric = bootstrap.DRAWN[task], bootstrap.METRIC[task]
    champion = draw(150, 0, 1.0, "old")
    challengers = [draw(150, 0, 1.2, f"night{number}") for number in range(7)]
    target = metric.rpartition("/")[0]
    known = {row.digest for row in champion.rows if row.target == target and int(row.digest[1:]) % 3}
    earlier = [replace(each, rows=tuple(row for row in each.rows if row.digest in known)) for each in challengers[:3]]
    rows = [rows_of(each, target) for each in (*earlier, *challengers[3:])]
    values, before = sample_values(rows, rows_of(champion, target), task, metric.rpartition("/")[2])
    alone, beside = sample_values(
        [rows[0]], {key: row for key, row in rows_of(champion, target).items() if key in rows[0]}, task, metric.rpartition("/")[2]
    )
    assert 0 < np.isnan(values[0]).sum() < values.shape[1]
    assert np.array_equal(values[0][~np.isnan(values[0])], alone[0])
    assert np.array_equal(before[0][~np.isnan(before[0])], beside[0])


def test_the_look_is_the_paired_t_of_the_mean() -> None:
    random = np.random.default_rng(0)
    challengers, champion = random.random((7, 50)), random.random(50)
    look = look_at_mean(challengers, champion)
    differences = challengers.mean(axis=0) - champion
    assert look.gain == pytest.approx(differences.mean())
    assert look.z == pytest.approx(differences.mean() / differences.std(ddof=1) * math.sqrt(50))
    assert look.newest_gain == pytest.approx(challengers[-1].mean() - champion.mean())


def test_few_samples_read_differently_prove_nothing_however_many_standard_errors_they_make() -> None:
    champion, challengers = np.zeros(100), np.zeros((7, 100))
    challengers[:, :10] = 1.0
    look = look_at_mean(challengers, champion)
    assert look.z > least_z(0.05)
    assert not is_proven(look, 0.05)
    challengers[:, 10] = 1.0
    assert is_proven(look_at_mean(challengers, champion), 0.05)


def test_the_levels_follow_alpha_and_the_size_of_the_holdout() -> None:
    assert first_level(0.05, 2000).value == pytest.approx(0.0445)
    assert first_level(0.01, 2000).value == pytest.approx(0.0089)
    assert first_level(0.05, 8000).value < first_level(0.05, 4000).value
    assert least_z(0.01) > least_z(0.05)
    assert norm.sf(least_z(0.01)) == pytest.approx(norm.sf(least_z(0.05)) / 5)


@pytest.mark.parametrize("measure", ["accuracy", "f1_macro", "average_precision"])
def test_what_samples_add_to_a_measure_is_its_jackknife(measure: str) -> None:
    random = np.random.default_rng(1)
    truths = (random.random((120, 3)) < 0.4).astype(float)
    scores = np.clip(truths * 0.3 + random.random((120, 3)) * 0.7, 0, 1)
    guesses = (scores > 0.5).astype(float)
    found = measure_of("multilabel", measure, Answers(truths, guesses, truths * guesses, scores))
    added = contributions(found, 120)
    value = float(found(np.ones((120, 1)))[0])
    assert added.mean() == pytest.approx(value, abs=1e-3)
    without = np.ones((120, 120)) - np.eye(120)
    jackknife = 120 * value - 119 * found(without)
    assert np.corrcoef(added, jackknife)[0, 1] > 0.99
    assert added.std() == pytest.approx(jackknife.std(), rel=0.1)


def entry(version: str, time: float, **changes: object) -> LedgerEntry:
    fields: dict[str, object] = {
        "kind": "verdict",
        "name": "m",
        "version": version,
        "time": time,
        "promoted": False,
        "reasons": (),
    }
    fields |= {"champion_before": "1", "champion_after": "1", "data_version": "d1", "variant_id": "v", "work_key": f"w{version}"}
    return LedgerEntry(**fields | {"metric": METRIC, "recipe": "r"} | changes)  # type: ignore[arg-type]


def test_the_account_is_read_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100 * SECONDS_A_DAY
    monkeypatch.setattr("time.time", lambda: now)
    champion = ModelVersion("m", "1", ("champion",), {}, 0.0)
    versions = {
        str(number): ModelVersion("m", str(number), (), {mlflow_tags.BUNDLE_DIGEST: f"{number:x}" * 64}, 0.0)
        for number in range(1, 14)
    }
    for number in (2, 3, 5, 6, 8, 9, 10, 11):
        scores = table(np.ones(3, dtype=bool), f"{number:x}" * 64, version="d1")
        write_scores(job.scores_file(tmp_path, scores.bundle_digest, "d1"), scores)
    day = [now - days * SECONDS_A_DAY for days in range(20)]
    history = [
        entry("1", day[15], champion_before=None, champion_after="1", promoted=True, figures={"p_value": 0.0}),
        entry("2", day[14], figures={"look": 1.0, "p_value": 0.3}),
        entry("3", day[13], figures={"num_looks": 1.0}),
        entry("4", day[12]),
        entry("5", day[11], recipe="another"),
        entry("6", day[10], metric="label/f1_macro", figures={"look": 1.0}),
        entry("7", day[9], kind="rollback"),
        entry("8", day[8], figures={"look": 2.0}),
        *(entry(str(number), day[7 - number + 8]) for number in (9, 10, 11)),
        entry("12", day[1], work_key="own", figures={"look": 3.0}),
        entry("13", day[0], champion_before="5", figures={"look": 1.0}),
    ]
    found = account_of(history, versions, champion, tmp_path, metric=METRIC, recipe="r", work_key="own")
    assert found.num_looks == 2
    assert found.days_since_look == pytest.approx(8.0)
    assert [scores.bundle_digest[0] for scores in found.challengers] == ["2", "3", "8", "9", "a", "b"], (
        "not 4, whose scores are gone"
    )
    old = [entry("2", day[14], metric="", recipe="", figures={"p_value": 0.2})]
    assert account_of(old, versions, champion, tmp_path, metric=METRIC, recipe="r", work_key="own").num_looks == 1, "as before"
    assert account_of([], versions, champion, tmp_path, metric=METRIC, recipe="r", work_key="own") == Account()


def test_a_verdict_of_a_first_model_is_no_look_at_a_champions_challengers() -> None:
    good = table(np.ones(50, dtype=bool), "new")
    verdict: Verdict = decide(Case(good, None, POLICY, majority={"label": "dog"}))
    assert verdict.promoted
    assert "look" not in verdict.figures
    first = decide(Case(good, table(np.arange(50) < 30, "old"), POLICY))
    assert first.promoted
    assert first.figures["look"] == 1
