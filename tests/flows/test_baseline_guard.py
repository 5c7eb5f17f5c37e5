"""The guard of a first model: it must not be proven worse than the probe, and need not be proven better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from flows.gate import Case, Policy, decide
from flows.plan import Plan
from flows.records import ScoreTable, Severity
from heads.catalogue import Task
from heads.tasks.rows import Scored


def table_of(right: np.ndarray[Any, Any], name: str, task: Task = "classification") -> ScoreTable:
    """A model that reads these samples rightly; of labels each sample has one of two, and the other one is told instead."""
    truths = ["ab"[n % 2] for n in range(len(right))]
    rows = []
    for n, (truth, ok) in enumerate(zip(truths, right, strict=True)):
        told = truth if ok else "ab"["ba".index(truth)]
        chances = {label: 0.9 if label == told else 0.1 for label in "ab"}
        rows.append(Scored(f"{n:032x}", "label", truth, told, 0.9, chances))
    return ScoreTable(name, "v1", tuple(rows), {"label/accuracy": float(right.mean())}, {"label": task})


def judge(right: np.ndarray[Any, Any], plain: np.ndarray[Any, Any], severity: Severity = "block", **more: Any) -> Any:
    task = more.pop("task", "classification")
    metric = "label/accuracy" if task == "classification" else "label/f1_macro"
    policy = Policy(metric, guards={"baseline": severity})
    case = Case(
        table_of(right, "new", task),
        more.pop("champion", None),
        policy,
        {"label": "a"},
        baseline=table_of(plain, "probe", task),
        baseline_name="the logistic probe on x",
        **more,
    )
    return decide(case)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_first_model_that_is_proven_worse_than_the_probe_is_not_promoted(task: Task) -> None:
    random = np.random.default_rng(0)
    good = random.random(200) < 0.97
    poor = good & (random.random(200) < 0.85)
    worse, equal, better = judge(poor, good, task=task), judge(good, good, task=task), judge(good, poor, task=task)
    assert [verdict.promoted for verdict in (worse, equal, better)] == [False, True, True]
    found = worse.findings[-1]
    assert (found.guard, found.passed, found.blocks) == ("baseline", False, True)
    assert "of the logistic probe on x: -0." in found.words
    assert "proven worse (p < 0.001, below alpha 0.05)" in found.words
    alone = "the frozen features alone tell more than the training made of them: try "
    assert worse.reasons[-1] == alone + "freeze: all, or a lower learning_rate"
    assert judge(poor, good, task=task, is_frozen=True).reasons[-1] == alone + "more epochs, or another learning_rate"
    random_first = judge(poor, good, task=task, is_pretrained=False).reasons[-1]
    assert random_first == alone + "more epochs, or a backbone with pretrained weights"
    assert equal.findings[-1].words.endswith("+0.000 to +0.000), not proven worse") or task == "classification"
    assert worse.figures == worse.findings[0].figures, "the figures of a verdict stay those of its first test"
    warned = judge(poor, good, "warn", task=task)
    assert warned.promoted
    assert any(reason.startswith("warning: holdout") for reason in warned.reasons)
    assert len(judge(poor, good, "off", task=task).findings) == len(worse.findings) - 1


def test_the_p_value_of_being_worse_is_mcnemars_of_the_exchanged_models() -> None:
    right, plain = np.ones(300, bool), np.ones(300, bool)
    right[:14], plain[14:18] = False, False
    found = judge(right, plain).findings[-1]
    assert found.figures["p_worse"] == pytest.approx(binomtest(14, 18, alternative="greater").pvalue)
    assert not found.passed
    right[:6] = True
    near = judge(right, plain).findings[-1]
    assert near.figures["p_worse"] == pytest.approx(binomtest(8, 12, alternative="greater").pvalue)
    assert near.passed, "so few are no proof"


def test_where_a_candidate_is_practically_the_probe_it_can_be_promoted_and_a_constant_one_cannot() -> None:
    right = np.random.default_rng(1).random(200) < 0.9
    near = right.copy()
    near[np.flatnonzero(right)[:2]] = False
    assert judge(near, right).promoted
    always_a = np.arange(200) % 2 == 0
    nothing = judge(always_a, always_a)
    assert [(one.guard, one.passed) for one in nothing.findings] == [("paired_test", False), ("baseline", True)]


def test_beside_a_champion_the_probe_has_no_say() -> None:
    right = np.random.default_rng(2).random(400) < 0.9
    verdict = judge(right, np.ones(400, bool), champion=table_of(~right, "old"))
    assert verdict.promoted
    assert "baseline" not in {one.guard for one in verdict.findings}


def test_a_plan_that_says_nothing_of_it_lets_the_baseline_block() -> None:
    assert Plan(name="x").promotion.guards.severities["baseline"] == "block"
