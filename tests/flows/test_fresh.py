"""Bets on new samples: what a stake becomes, that equal models seldom win, what is said of them, which plans may ask for it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flows.errors import AskedWrongly
from flows.gate import Case, FreshAccount, Policy, decide
from flows.gate.case import rows_of
from flows.gate.fresh import BETS, LAID_ANEW, STAKES, VALUES, bets_of, is_proven, log_wealths
from flows.job.holdout.scoring import _likeliest
from flows.plan import Plan, check_data, parse_plan, retraining_key
from flows.plan.promotion import FRESH_MEASURES
from flows.records import DataVersion, Sample, ScoreTable
from heads.tasks.measures import from_scores
from heads.tasks.rows import Scored
from tests.flows.test_account import METRIC, POLICY, table

ALPHA = 0.05


def bernoulli(shares: tuple[float, float], n: int, seed: int) -> NDArray[np.float64]:
    """Differences of 1, -1 and 0: the shares of samples that only the challenger, and only the champion, reads rightly."""
    drawn = np.random.default_rng(seed).random(n)
    return np.where(drawn < shares[0], 1.0, np.where(drawn < sum(shares), -1.0, 0.0))


def log_wealth(nights: list[NDArray[np.float64]]) -> float:
    return list(log_wealths(nights))[-1]


def proven(nights: list[NDArray[np.float64]]) -> bool:
    return is_proven(log_wealth(nights), nights[-1], ALPHA)


def test_a_stake_grows_as_in_a_plain_loop_of_the_published_bets() -> None:
    nights = [bernoulli((0.05, 0.03), 40, seed) for seed in range(5)]
    stakes, wealth = list(map(float, STAKES)), 1.0
    for night in nights:
        for place, share in enumerate(BETS):
            p = (1 + share) / 2
            won, lost = int((night > 0).sum()), int((night < 0).sum())
            stakes[place] *= (2 * p) ** won * (2 * (1 - p)) ** lost
        wealth = sum(stakes)
        stakes = [0.98 * stake + 0.02 * wealth * part for stake, part in zip(stakes, (0.5, *[0.125] * 4), strict=True)]
    assert LAID_ANEW == 0.02
    assert math.exp(log_wealth(nights)) == pytest.approx(wealth)


def test_what_equal_models_leave_of_a_stake_is_a_stake_on_average_to_the_last_digit() -> None:
    outcomes = [np.array(signs).reshape(3, 2) for signs in itertools.product((-1.0, 1.0), repeat=6)]
    assert np.mean([math.exp(log_wealth(list(nights))) for nights in outcomes]) == pytest.approx(1.0, abs=1e-12)


def test_reigns_of_equal_challengers_hold_a_promotion_in_fewer_than_alpha_of_all() -> None:
    random, won = np.random.default_rng(0), 0
    for _ in range(200):
        nights = [np.sign(random.random(6) - 0.5) for _ in range(60)]
        won += any(is_proven(wealth, night, ALPHA) for wealth, night in zip(log_wealths(nights), nights, strict=True))
    assert won / 200 <= ALPHA


def test_a_better_challenger_that_comes_after_months_of_equal_ones_is_found_in_weeks() -> None:
    equal = [bernoulli((0.03, 0.03), 100, seed) for seed in range(100)]
    better = [bernoulli((0.05, 0.02), 100, seed) for seed in range(1000, 1020)]
    assert not proven(equal)
    assert proven([*equal, *better])
    held_back = np.log(np.exp([np.log1p(BETS * d).sum() for d in (np.concatenate(equal)[:, None],)]).mean())
    assert log_wealth(equal) > held_back, "part of the stake is laid out anew each night"


def test_a_challenger_that_is_behind_on_its_own_night_is_not_promoted_by_its_predecessors() -> None:
    won = [np.ones(40)]
    assert proven(won)
    assert proven([*won, np.array([1.0, -1.0])])
    assert not proven([*won, np.array([-1.0])])


def test_samples_of_a_group_and_labels_of_one_image_are_one_bet() -> None:
    new = table(np.array([True, True, True, False, True]), "new")
    old = table(np.array([False, True, False, False, True]), "old")
    again = replace(new.rows[4], truth="fox", predicted="dog")
    new, old = (replace(each, rows=(*each.rows, again)) for each in (new, old))
    night = bets_of(rows_of(new, "label"), rows_of(old, "label"), "accuracy", {"d0": "g", "d1": "g"})
    assert night.num_samples == 6
    assert sorted(night.differences) == [0, 0, 0.5, 1]
    alone = bets_of(
        rows_of(table(np.ones(3, bool), "a"), "label"), rows_of(table(np.zeros(3, bool), "b"), "label"), "accuracy", {}
    )
    assert alone.differences.tolist() == [1, 1, 1]


def test_whether_the_truth_is_among_the_five_likeliest_is_read_as_the_measure_counts_it() -> None:
    random = np.random.default_rng(0)
    chances = random.integers(0, 6, (300, 8)) / 10
    truths = random.integers(0, 8, 300)
    rows = [
        Scored(f"{i}", "label", f"c{truth}", "c0", 0.5, {f"c{number}": float(p) for number, p in enumerate(row)})
        for i, (truth, row) in enumerate(zip(truths, chances, strict=True))
    ]
    kept = [replace(row, probabilities=_likeliest(row)) for row in rows]
    assert {len(row.probabilities) for row in kept} == {5}
    wanted = from_scores(torch.from_numpy(chances), torch.from_numpy(truths))["top5"]
    assert np.mean([VALUES["top5"](row) for row in kept]) == pytest.approx(float(wanted))


def case_of(new: NDArray[np.bool_], old: NDArray[np.bool_], **changes: object) -> Case:
    tonight = table(new, "new", 10_000, "v2-x"), table(old, "old", 10_000, "v2-x")
    return replace(Case(*tonight, POLICY, champion_name="champion 3", recipe="r", fresh=FreshAccount()), **changes)  # type: ignore[arg-type]


RANDOM = np.random.default_rng(7)
OLD = RANDOM.random(400) < 0.9
SLIGHTLY, FAR = OLD | (RANDOM.random(400) < 0.15), OLD | (RANDOM.random(400) < 0.6)


def test_until_the_bets_decide_nothing_is_said_of_how_the_samples_are_read() -> None:
    verdict = decide(case_of(SLIGHTLY, OLD))
    assert not verdict.promoted
    assert [one.guard for one in verdict.findings] == ["fresh_labels"]
    (words,) = verdict.reasons
    assert words.startswith(
        "400 labels arrived since challenger and champion were made, 400 in 1 night of the reign of champion 3: no challenger is "
        "proven better on them; about "
    )
    assert words.endswith("00 more labels would decide")
    assert verdict.figures == {"num_new": 400, "num_labels": 400, "num_bets": 400, "num_nights": 1, "least_wealth": 20}
    assert decide(case_of(OLD, OLD)).reasons[0].endswith("and nothing points that way yet")
    assert decide(case_of(OLD & (np.arange(400) > 60), OLD)).reasons[0].endswith("and nothing points that way yet")


def test_earlier_nights_of_the_reign_count_and_the_first_bet_takes_all_of_alpha() -> None:
    def night(number: int) -> tuple[ScoreTable, ScoreTable]:
        return table(SLIGHTLY, "c", 1000 * number, f"v{number}"), table(OLD, "old", 1000 * number, f"v{number}")

    alone, account = decide(case_of(SLIGHTLY, OLD)), FreshAccount(tuple(map(night, range(4))))
    verdict = decide(case_of(SLIGHTLY, OLD, fresh=account))
    assert (alone.promoted, verdict.promoted) == (False, True)
    assert (alone.level_spent, verdict.level_spent) == (ALPHA, 0)
    assert verdict.figures["num_labels"] == 2000
    assert verdict.figures["wealth"] >= 20
    assert verdict.figures["gain"] == pytest.approx(SLIGHTLY.mean() - OLD.mean())
    assert "a stake of 1 on that has grown to" in verdict.reasons[0]
    behind = decide(case_of(OLD & (np.arange(400) > 3), OLD, fresh=account))
    assert not behind.promoted
    assert behind.reasons[0].endswith("challengers are proven better on them, but this one is behind on tonight's")
    assert "gain" not in behind.figures
    other = decide(case_of(SLIGHTLY, OLD, fresh=replace(account, num_lost=2, num_looks=3)))
    assert other.reasons[-2:] == (
        "the scores of 2 earlier nights of the reign are gone, and do not count",
        "the holdout was asked 3 times about challengers of champion 3 too: a plan that changes its evidence within a reign may "
        "spend alpha twice",
    )


def test_a_proven_challenger_has_to_pass_the_guards_on_the_holdout() -> None:
    policy = Policy(METRIC, guards={"worst_class": "block", "negative_flips": "block"})
    tonight = case_of(FAR, OLD, policy=policy)
    (proof,) = decide(tonight).findings
    assert proof.passed
    held = RANDOM.random(600) < 0.9

    def holdout(right: NDArray[np.bool_], policy: Policy = policy) -> Case:
        return replace(tonight, candidate=table(right, "new"), champion=table(held, "old"), proof=proof, policy=policy)

    verdict = decide(holdout(held | (RANDOM.random(600) < 0.3)))
    assert verdict.promoted
    assert [one.guard for one in verdict.findings] == ["fresh_labels", "min_gain", "worst_class", "negative_flips"]
    assert verdict.figures == proof.figures
    unlike = decide(holdout(RANDOM.random(600) < 0.9))
    assert not unlike.promoted
    assert {one.guard for one in unlike.findings if not one.passed} >= {"negative_flips"}
    assert not decide(holdout(held, replace(policy, min_gain=0.01))).promoted
    assert not decide(replace(holdout(held), candidate=table(held, "new", 5000), champion=table(held, "new", 5000))).promoted


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"metric": "label/f1_macro"}, "is a mean over samples, and label/f1_macro is none; allowed .* <column>/accuracy or <c"),
        ({"metric": "mask/miou"}, "mask/miou is none"),
        ({"mode": "non_inferior", "margin": 0.01}, "with mode non_inferior use evidence holdout"),
    ],
)
def test_a_plan_that_new_samples_cannot_decide_is_refused(rules: dict[str, object], words: str) -> None:
    with pytest.raises(AskedWrongly, match=words):
        parse_plan({"name": "a", "promotion": {"evidence": "fresh", **rules}})
    with pytest.raises(AskedWrongly, match="evidence: should be 'holdout' or 'fresh', got 'new'"):
        parse_plan({"name": "a", "promotion": {"evidence": "new"}})


def test_a_target_whose_own_measure_is_no_mean_is_refused_and_a_plan_of_before_keeps_its_key() -> None:
    assert tuple(VALUES) == FRESH_MEASURES
    rows = [(f"{n:032x}", split, ("a|b", "b")[n % 2]) for n, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2)]
    samples = tuple(Sample(digest, f"{digest}.png", split, {"tags": cell}) for digest, split, cell in rows)
    version = DataVersion("d" * 32, "r" * 40, samples, samples[0].file, ())  # type: ignore[arg-type]

    def plan(**rules: object) -> Plan:
        return parse_plan({"name": "x", "weights": "none", "backbones": ["resnet18"], "promotion": rules})

    with pytest.raises(AskedWrongly, match=r"tags/average_precision is none; allowed for promotion\.metric"):
        check_data(plan(evidence="fresh"), version)
    check_data(plan(evidence="fresh", metric="tags/accuracy"), version)
    keys = [
        retraining_key(plan(**rules), version, ())
        for rules in ({}, {"evidence": "holdout"}, {"evidence": "fresh", "metric": "tags/accuracy"})
    ]
    assert keys[0] == keys[1] != keys[2]
