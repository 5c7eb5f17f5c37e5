"""Samples that were taken together: they count as one in every paired test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray

from flows.gate import Account, Case, Policy, decide
from flows.gate.account import look_at_mean
from flows.gate.bootstrap import resample
from flows.gate.classes import Pairs, mcnemar
from flows.gate.clusters import FEW_GROUPS, clusters_of, error_of_mean, sign_test
from flows.records import ScoreTable
from heads.tasks.rows import Scored
from tests.flows import test_gate_bootstrap as bootstrap

METRIC = "label/accuracy"


def table(right: NDArray[np.bool_], bundle: str) -> ScoreTable:
    rows = tuple(Scored(f"d{i:05}", "label", "cat", "cat" if ok else "dog", 0.9) for i, ok in enumerate(right))
    return ScoreTable(bundle, "v1", rows, {METRIC: float(right.mean())})


def in_groups(num_samples: int, size: int) -> dict[str, str]:
    return {f"d{i:05}": f"g{i // size}" for i in range(num_samples)}


def test_a_group_is_a_cluster_and_so_is_a_sample_in_none() -> None:
    found = clusters_of([("d", ""), ("b", ""), ("a", ""), ("c", "")], {"a": "x", "c": "x"})
    assert found is not None
    assert found.tolist() == [0, 1, 0, 2]
    assert clusters_of([("a", ""), ("b", "")], {"a": "x", "b": "y"}) is None
    assert clusters_of([("a", ""), ("b", "")], {}) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_test_counts_all_ways_to_reverse_the_groups(seed: int) -> None:
    nets = np.random.default_rng(seed).integers(-3, 5, 9)
    total = abs(int(nets.sum()))
    reached = [abs(int((nets * signs).sum())) >= total for signs in product((-1, 1), repeat=9)]
    assert sign_test(nets) == pytest.approx(np.mean(reached), abs=1e-12)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (9, 4), (3, 8), (700, 610)])
def test_with_groups_of_one_sample_it_is_mcnemars(fixed: int, broken: int) -> None:
    assert sign_test(np.array([1] * fixed + [-1] * broken + [0] * 5)) == pytest.approx(mcnemar(fixed, broken), rel=1e-9)


def test_the_error_of_a_mean_is_the_cluster_robust_one_of_statsmodels() -> None:
    random = np.random.default_rng(3)
    clusters = random.integers(0, 25, 300)
    values = random.normal(size=300) + random.normal(size=25)[clusters]
    numbers = np.unique(clusters, return_inverse=True)[1]
    # Theirs is corrected by (N - 1) / (N - K) as well, which is 1 for a mean.
    theirs = sm.OLS(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": numbers}).bse[0]
    assert error_of_mean(values, numbers) == pytest.approx(theirs, rel=1e-9)
    assert error_of_mean(values, np.arange(300)) == pytest.approx(error_of_mean(values, None), rel=1e-9)


def test_bursts_of_copies_prove_no_more_than_their_originals() -> None:
    random = np.random.default_rng(5)
    new, old = random.random(60) < 0.9, random.random(60) < 0.72
    alone, copied = Pairs(new, old), Pairs(np.repeat(new, 8), np.repeat(old, 8))
    grouped = Pairs(copied.right, copied.right_before, np.repeat(np.arange(60), 8))
    assert copied.p_value < alone.p_value / 10
    assert grouped.p_value == pytest.approx(alone.p_value, rel=1e-9)
    assert grouped.best_p_value == alone.best_p_value
    assert np.subtract(*grouped.gain_interval) == pytest.approx(np.subtract(*alone.gain_interval), rel=0.1)


def test_the_bootstrap_of_copies_is_that_of_their_originals() -> None:
    def mean_of(values: NDArray[np.float64]):  # type: ignore[no-untyped-def]
        return lambda weights: values @ weights / weights.sum(axis=0)

    random = np.random.default_rng(6)
    new, old = random.random(80), random.random(80) * 0.95
    alone = resample(mean_of(new), mean_of(old), num_samples=80, num_differing=80, seed=1, num_resamples=1000)
    functions = [mean_of(np.repeat(values, 5)) for values in (new, old)]
    grouped = resample(
        *functions, num_samples=400, num_differing=80, seed=1, num_resamples=1000, clusters=np.repeat(np.arange(80), 5)
    )
    assert (grouped.p_value, grouped.gain.low, grouped.gain.high) == pytest.approx(
        (alone.p_value, alone.gain.low, alone.gain.high), abs=1e-9
    )


def test_a_champions_challenger_and_its_recipe_are_judged_by_groups() -> None:
    random = np.random.default_rng(7)
    old = np.repeat(random.random(40) < 0.75, 10)
    nights = [np.repeat(random.random(40) < 0.9, 10) for _ in range(7)]
    champion, tables = table(old, "old"), [table(right, f"night{n}") for n, right in enumerate(nights)]

    def case(groups: dict[str, str], account: Account) -> Case:
        return Case(tables[-1], champion, Policy(METRIC), champion_name="champion 3", account=account, taken_together=groups)

    weekly, groups = Account(1, 9.0, tuple(tables[:-1])), in_groups(400, 10)
    alone, grouped = (case(given, weekly).mean_look for given in ({}, groups))
    assert grouped.gain == alone.gain
    assert grouped.z == pytest.approx(alone.z / np.sqrt(10), rel=0.03)
    assert grouped.num_differing == alone.num_differing / 10
    assert look_at_mean(np.stack(nights).astype(float)[:, ::10], old[::10].astype(float)).z == pytest.approx(grouped.z, rel=1e-9)
    verdict = decide(case(groups, Account()))
    assert verdict.figures["num_groups"] == 40
    assert "on 400 samples in 40 groups" in verdict.reasons[0]
    assert "exact sign test of groups" in verdict.reasons[0]


def test_of_few_groups_samples_are_judged_one_by_one_and_the_verdict_says_so() -> None:
    random = np.random.default_rng(8)
    verdict = decide(
        Case(
            table(random.random(300) < 0.95, "new"),
            table(random.random(300) < 0.7, "old"),
            Policy(METRIC),
            champion_name="champion 3",
            taken_together=in_groups(300, 100),
        )
    )
    assert verdict.promoted
    assert "num_groups" not in verdict.figures
    assert FEW_GROUPS in verdict.reasons


@pytest.mark.parametrize("task", bootstrap.TASKS)
def test_label_sets_and_masks_are_resampled_by_groups(task) -> None:  # type: ignore[no-untyped-def]
    new, old = bootstrap.pair(task, 120)
    groups = {row.digest: f"g{i // 6}" for i, row in enumerate(sorted(new.rows, key=lambda row: row.digest))}
    policy = Policy(bootstrap.METRIC[task])
    alone, grouped = (bootstrap.gate(new, old, policy, taken_together=given) for given in ({}, groups))
    assert grouped.figures["num_groups"] == 20
    assert grouped.figures["gain"] == alone.figures["gain"]
    assert grouped.figures["gain_low"] != alone.figures["gain_low"]
    assert "samples in 20 groups" in grouped.reasons[0]
