"""The gate: ranking, the paired test, its intervals, and every rule of promotion."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from flows.errors import AskedWrongly
from flows.gate import Account, Case, Policy, choose, decide
from flows.gate.classes import mcnemar, paired_interval, wilson_interval
from flows.gate.guards.table import GUARDS, SCORE_GUARDS
from flows.records import Finding, ScoreTable, TrainedVariant, Verdict
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored

METRIC = "label/accuracy"


def trained(accuracy: float | None, *, seed: int = 0, parameters: int = 10, trained_parameters: int = 5) -> TrainedVariant:
    variant = Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(seed=seed))
    metrics = {"train/loss": 0.1} if accuracy is None else {f"val/{METRIC}": accuracy}
    return TrainedVariant(
        key=f"key{seed}",
        variant=variant,
        reused=False,
        metrics=metrics,
        num_parameters=parameters,
        num_trained_parameters=trained_parameters,
        num_forwarded=1,
        seconds=1.0,
    )


def table(right: list[bool], *, bundle: str = "new", version: str = "v1", truth: str = "cat", wrong: str = "dog") -> ScoreTable:
    rows = tuple(Scored(f"d{i}", "label", truth, truth if ok else wrong, 0.9) for i, ok in enumerate(right))
    return ScoreTable(bundle, version, rows, {METRIC: sum(right) / len(right) if right else math.nan})


def pair(both: int, fixed: int, broken: int, neither: int) -> tuple[ScoreTable, ScoreTable]:
    new = [True] * both + [True] * fixed + [False] * broken + [False] * neither
    old = [True] * both + [False] * fixed + [True] * broken + [False] * neither
    return table(new), table(old, bundle="old")


def gate(candidate: ScoreTable, champion: ScoreTable | None, policy: Policy | None = None, **more: object) -> Verdict:
    return decide(Case(candidate, champion, policy or Policy(METRIC), majority={"label": "dog"}, **more))  # type: ignore[arg-type]


def binomial_sum(num_fixed: int, num_broken: int) -> float:
    n, k = num_fixed + num_broken, min(num_fixed, num_broken)
    return min(1.0, 2 * math.fsum(math.comb(n, i) for i in range(k + 1)) / math.pow(2, n))


def chosen(variants: list[TrainedVariant], num_labels: int = 10_000, **costs: int) -> TrainedVariant:
    return choose(variants, METRIC, {one.key: costs.get(one.key, 100) for one in variants}, num_labels).variant


def test_the_best_on_validation_is_the_candidate_if_no_other_is_near() -> None:
    variants = [trained(0.8, seed=0), trained(0.9, seed=1), trained(0.85, seed=2)]
    assert chosen(variants) is variants[1]
    assert chosen(variants, key0=1) is variants[1]
    assert chosen(variants, num_labels=0, key2=1) is variants[1], "without labels there is no error to be within"


def test_the_cheapest_to_serve_within_one_standard_error_of_the_best_is_the_candidate() -> None:
    best, near, far = trained(0.9, seed=0), trained(0.88, seed=1), trained(0.865, seed=2)
    # One standard error of 0.9 among 100 labels is 0.03: Wilson's interval at z = 1 begins at 0.866.
    least = proportion_confint(90, 100, alpha=2 * norm.sf(1), method="wilson")[0]
    assert 0.865 < least < 0.88
    found = choose([best, near, far], METRIC, {"key0": 300_000_000, "key1": 50_000_000, "key2": 1}, 100)
    assert found.variant is near
    assert found.why == (
        "the cheapest to serve (50 million multiply-adds, 10 parameters) of the 2 variants within one standard error of the best "
        f"on validation: val/label/accuracy 0.8800 of 0.9000, at least {least:.4f} on 100 labels"
    )
    assert choose([best, far], METRIC, {"key0": 2, "key2": 1}, 100) == (best, "the best on validation, val/label/accuracy 0.9000")
    perfect, nearly = trained(1.0, seed=0), trained(0.995, seed=1)
    assert chosen([perfect, nearly], num_labels=100, key1=1) is nearly, "a perfect score has an error, too"


def test_of_variants_that_cost_the_same_fewer_parameters_then_the_best_then_the_plans_order_count() -> None:
    small, other = trained(0.899, seed=0, parameters=9), trained(0.9, seed=1)
    assert chosen([other, small], num_labels=100) is small
    better, few, later = (
        trained(value, seed=n, trained_parameters=k) for n, value, k in ((0, 0.9, 5), (1, 0.899, 1), (2, 0.9, 5))
    )
    assert chosen([few, better, later], num_labels=100) is better
    assert chosen([few, trained(0.899, seed=3)], num_labels=100) is few


def test_a_diverged_variant_is_not_the_candidate() -> None:
    assert chosen([trained(math.nan, seed=0), trained(0.7, seed=1)]).key == "key1"


@pytest.mark.parametrize(
    ("variants", "reason"),
    [([], "there is no variant"), ([trained(None)], "has no val/label/accuracy"), ([trained(math.nan)], "is nan")],
)
def test_nothing_to_rank_is_refused_with_the_reason(variants: list[TrainedVariant], reason: str) -> None:
    with pytest.raises(AskedWrongly, match=rf"'val/label/accuracy': .*{reason}"):
        chosen(variants)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_direct_binomial_sum(num_fixed: int, num_broken: int) -> None:
    assert mcnemar(num_fixed, num_broken) == pytest.approx(binomial_sum(num_fixed, num_broken), abs=1e-12)


def test_wilson_intervals_match_the_published_ones() -> None:
    # Newcombe 1998, Statist. Med. 17:857-872, table I.
    for right, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_interval_matches_the_published_one() -> None:
    # Cavo et al. 2012 (59, 6, 16, 80), Tango's interval as in Fagerland et al. 2017, Statistical Analysis of Contingency Tables.
    assert paired_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize(("num_fixed", "num_broken", "n"), [(9, 2, 298), (0, 3, 50), (5, 5, 20), (12, 0, 40), (1, 0, 6)])
def test_the_paired_interval_holds_what_a_score_test_with_the_numerical_likelihood_accepts(
    num_fixed: int, num_broken: int, n: int
) -> None:
    def distance(difference: float) -> float:
        def loss(share: float) -> float:
            cells = (
                (num_fixed, share + difference),
                (num_broken, share),
                (n - num_fixed - num_broken, 1 - 2 * share - difference),
            )
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return abs(num_fixed - num_broken - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))

    for end in paired_interval(num_fixed, num_broken, n):
        if abs(end) < 1:
            assert distance(end) == pytest.approx(1.959964, abs=1e-3)


def test_the_paired_interval_covers_the_truth_at_about_its_level() -> None:
    n, fixed, broken = 60, 0.12, 0.07
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = math.comb(n, b) * math.comb(n - b, c)
            chance = ways * fixed**b * broken**c * (1 - fixed - broken) ** (n - b - c)
            if chance > 1e-9:
                low, high = paired_interval(b, c, n)
                covered += chance * (low <= fixed - broken <= high)
    assert 0.94 <= covered <= 0.97


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_paired_interval_holds_the_estimate_and_mirrors(num_fixed: int, num_broken: int, others: int) -> None:
    n = max(1, num_fixed + num_broken + others)
    low, high = paired_interval(num_fixed, num_broken, n)
    assert -1 <= low <= (num_fixed - num_broken) / n <= high <= 1
    assert paired_interval(num_broken, num_fixed, n) == pytest.approx((-high, -low), abs=1e-6)


def test_a_clear_gain_over_the_champion_is_promoted_with_its_numbers() -> None:
    verdict = gate(*pair(270, 20, 2, 6), champion_name="version 3")
    assert verdict.promoted
    assert "against 0.913 of version 3: +0.060" in verdict.reasons[0]
    assert (
        "(20 fixed, 2 broken), exact McNemar p < 0.001, below 0.0445, the first look's part of alpha 0.05" in verdict.reasons[0]
    )
    assert "at least min_gain 0" in verdict.reasons[1]
    figures = verdict.figures
    assert figures["p_value"] == pytest.approx(binomial_sum(20, 2) / 2)
    assert (figures["num_samples"], figures["num_fixed"], figures["num_broken"]) == (298, 20, 2)
    assert figures["gain_low"] < figures["gain"] < figures["gain_high"]
    assert figures["metric_gain"] == pytest.approx(18 / 298)


def test_a_repeated_sample_counts_once_and_the_verdict_says_so() -> None:
    new, old = pair(270, 20, 2, 6)
    again = replace(new, rows=(*new.rows, *new.rows[-8:], replace(new.rows[0], target="other")))
    found, alone = (gate(each, old).findings[0] for each in (again, new))
    assert found.figures == alone.figures
    assert found.words == alone.words.replace("on 298 samples (", "on 298 samples, 8 repeated ones left out (") != alone.words
    allowed = gate(again, old, Policy(METRIC, margin=0.01)).findings[0]
    assert (allowed.guard, " on 298 samples, 8 repeated ones left out against" in allowed.words) == ("non_inferior", True)


def test_an_unproven_gain_is_not_promoted() -> None:
    verdict = gate(*pair(278, 8, 2, 10), champion_name="version 3")
    assert not verdict.promoted
    assert "+0.020" in verdict.reasons[0]
    assert "(8 fixed, 2 broken), exact McNemar p = 0.055, not below 0.0445" in verdict.reasons[0]


def test_a_significant_loss_is_not_promoted() -> None:
    verdict = gate(*pair(270, 2, 20, 6))
    assert not verdict.promoted
    assert "and for the worse" in verdict.reasons[0]
    assert "less than min_gain" in verdict.reasons[1]


def test_a_proven_gain_below_min_gain_is_not_promoted() -> None:
    verdict = gate(*pair(270, 20, 2, 6), Policy(METRIC, min_gain=0.1))
    assert not verdict.promoted
    assert "less than min_gain 0.1" in verdict.reasons[1]


def test_a_gain_of_exactly_min_gain_is_enough() -> None:
    assert gate(*pair(80, 12, 2, 6), Policy(METRIC, min_gain=0.1)).promoted


def test_a_first_model_must_beat_the_majority_class() -> None:
    good = table([True] * 45 + [False] * 5)
    verdict = gate(good, None)
    assert verdict.promoted
    assert "against 0.000 of always answering 'dog'" in verdict.reasons[0]
    assert not decide(Case(good, None, Policy(METRIC), majority={"label": "cat"})).promoted


def test_a_first_model_that_answers_the_majority_class_is_not_promoted() -> None:
    rows = tuple(Scored(f"d{i}", "label", "dog" if i < 30 else "cat", "dog", 0.9) for i in range(50))
    verdict = gate(ScoreTable("new", "v1", rows, {METRIC: 0.6}), None)
    assert not verdict.promoted
    assert "(0 fixed, 0 broken), exact McNemar p = 1.000" in verdict.reasons[0]


def test_the_champion_itself_is_not_promoted_again() -> None:
    champion = table([True] * 9 + [False])
    verdict = gate(champion, champion)
    assert not verdict.promoted
    assert "is the champion already" in verdict.reasons[0]


def test_a_model_that_a_person_rolled_back_is_not_promoted() -> None:
    verdict = gate(*pair(270, 20, 2, 6), withdrawn=True)
    assert not verdict.promoted
    assert "rolled this very model back" in verdict.reasons[0]


def test_an_empty_holdout_proves_nothing() -> None:
    verdict = gate(table([]), None)
    assert not verdict.promoted
    assert "no sample" in verdict.reasons[0]


def test_a_holdout_too_small_for_any_challenger_is_said_so() -> None:
    verdict = gate(*pair(56, 4, 0, 0))
    assert not verdict.promoted
    assert "misreads only 4 of 60 samples: even a model without a mistake would reach p = 0.062" in verdict.reasons[-1]


def test_a_holdout_of_the_majority_class_alone_is_told_by_the_classes_that_it_lacks() -> None:
    good = table([True] * 18)
    classes = {"label": ["bird", "cat", "dog"]}
    verdict = decide(Case(good, None, Policy(METRIC), majority={"label": "cat"}, classes=classes))
    assert verdict.reasons[-1] == (
        "always answering 'cat' misreads none of 18 samples, so no model can be shown to be better, whatever alpha is; add test "
        "samples of 'bird', 'dog' (the holdout has none)"
    )
    rows = (*good.rows, *(replace(row, digest=f"b{i}", truth="bird", predicted="bird") for i, row in enumerate(good.rows[:3])))
    few = Case(replace(good, rows=rows), None, Policy(METRIC), majority={"label": "cat"}, classes=classes)
    assert decide(few).reasons[-1].endswith("p = 0.125, not below alpha 0.05; add test samples of other classes or raise alpha")
    assert few.foresee() == decide(few).reasons[-1]


@pytest.mark.parametrize(
    ("champion", "words"),
    [
        (table([True] * 4, bundle="old", version="v0"), "data version 'v1', the champion on 'v0'"),
        (table([True] * 3, bundle="old"), "different samples"),
        (table([True] * 4, bundle="old", truth="bird"), "different samples"),
    ],
)
def test_tables_of_other_samples_are_refused(champion: ScoreTable, words: str) -> None:
    with pytest.raises(AskedWrongly, match=words):
        gate(table([True] * 4), champion)


def test_a_champion_of_another_target_stays_and_the_reason_says_what_to_do() -> None:
    rows = tuple(Scored(f"d{i}", "species", "cat", "cat", 0.9) for i in range(20))
    for champion in (ScoreTable("old", "v1", rows, {"species/accuracy": 1.0}), ScoreTable("old", "v1", (), {})):
        verdict = gate(table([True] * 20), champion, champion_name="champion 3")
        assert not verdict.promoted
        assert "champion 3 does not predict 'label'" in verdict.reasons[0]
        assert "another name" in verdict.reasons[0]


def test_every_guard_says_by_its_name_whether_it_passed() -> None:
    better, worse = gate(*pair(880, 80, 10, 30)), gate(*pair(880, 10, 80, 30), Policy(METRIC, min_gain=0.01))
    assert [(one.guard, one.passed) for one in better.findings] == [("paired_test", True), ("min_gain", True)]
    assert [(one.guard, one.passed) for one in worse.findings] == [("paired_test", False), ("min_gain", False)]
    assert better.findings[0].figures == better.figures
    assert better.findings[1].figures == {"metric_gain": pytest.approx(0.07), "min_gain": 0.0}
    assert better.reasons[:2] == tuple(one.words for one in better.findings)
    assert [one.guard for one in gate(pair(880, 80, 10, 30)[0], None).findings] == ["paired_test"], "there is nothing to gain on"
    assert [one.guard for one in gate(*pair(880, 80, 10, 30), withdrawn=True).findings] == ["not_withdrawn"]


def test_what_is_not_admitted_is_not_judged() -> None:
    new, old = pair(880, 80, 10, 30)
    refused = {
        "comparable": (gate(new, replace(old, rows=())), gate(new, new), gate(new, replace(old, tasks={"label": "multilabel"}))),
        "testable": (gate(table([]), None), gate(table([]), table([], bundle="old"))),
    }
    for name, verdicts in refused.items():
        for verdict in verdicts:
            assert not verdict.promoted
            assert [(one.guard, one.passed, (one.words,)) for one in verdict.findings] == [(name, False, verdict.reasons)]


def test_a_guard_that_the_table_holds_has_its_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(case: Case) -> Finding:
        return Finding("picky", False, f"{case.target} is not liked", notes=("try another",))

    monkeypatch.setitem(GUARDS, "picky", picky)  # type: ignore[arg-type]
    verdict = gate(*pair(880, 80, 10, 30))
    assert not verdict.promoted
    assert verdict.reasons[2:] == ("label is not liked", "try another")


def test_a_chosen_guard_blocks_warns_or_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(case: Case) -> Finding:
        return Finding("picky", False, f"{case.groups['d0']} is not liked")

    monkeypatch.setitem(SCORE_GUARDS, "picky", picky)  # type: ignore[arg-type]
    said = {
        severity: gate(*pair(880, 80, 10, 30), Policy(METRIC, guards={"picky": severity}), groups={"d0": "north"})
        for severity in ("block", "warn", "off")
    }
    assert {severity: verdict.promoted for severity, verdict in said.items()} == {"block": False, "warn": True, "off": True}
    assert said["block"].reasons[2:] == ("north is not liked",)
    assert said["warn"].reasons[2:] == ("warning: north is not liked",)
    assert [(one.guard, one.blocks) for one in said["warn"].findings][1:] == [("min_gain", True), ("picky", False)]
    assert len(said["off"].findings) == 2
    undecided = Account(num_looks=1, days_since_look=1.0)
    silent = gate(*pair(880, 80, 10, 30), Policy(METRIC, guards={"picky": "warn"}), account=undecided)
    assert [one.guard for one in silent.findings] == ["paired_test"], "between looks nothing is told of the holdout"


def test_the_measures_own_target_is_tested() -> None:
    def both(bundle: str, species_right: int) -> ScoreTable:
        rows = [Scored(f"d{i}", "breed", "a", "a", 0.9) for i in range(40)]
        rows += [Scored(f"d{i}", "species", "cat", "cat" if i < species_right else "dog", 0.9) for i in range(40)]
        return ScoreTable(bundle, "v1", tuple(rows), {"breed/accuracy": 1.0, "species/f1_macro": species_right / 40})

    verdict = decide(Case(both("new", 36), both("old", 20), Policy("species/f1_macro"), majority={"species": "dog"}))
    assert verdict.promoted
    assert verdict.figures["num_fixed"] == 16
    assert "holdout species/f1_macro 0.900 against 0.500" in verdict.reasons[1]


def test_a_measure_that_a_table_lacks_is_named() -> None:
    with pytest.raises(AskedWrongly, match="'label/auroc'; it has: label/accuracy"):
        gate(*pair(10, 5, 0, 0), Policy("label/auroc"))


def test_equal_challengers_are_promoted_no_more_often_than_alpha() -> None:
    random, nights, promoted = np.random.default_rng(0), 600, 0
    for _ in range(nights):
        easy = random.random(120) < 0.8  # both models read the same samples easily, as real ones do
        new, old = (easy & (random.random(120) < 0.97) | (random.random(120) < 0.5) for _ in range(2))
        promoted += gate(table(list(map(bool, new))), table(list(map(bool, old)), bundle="old")).promoted
    assert promoted / nights <= 0.05
