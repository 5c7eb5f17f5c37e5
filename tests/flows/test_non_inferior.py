"""Promotion as not worse by a margin: the tests, the anchor that losses are counted from, the account, and the nights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar

from flows.errors import AskedWrongly
from flows.gate import Account, Policy, decide
from flows.gate.account import MeanLook, first_level, is_proven, least_z
from flows.gate.classes import paired_interval, paired_score
from flows.gate.recipe import sample_values
from flows.model_version import ModelVersion
from flows.plan import parse_plan
from flows.stages.account import SECONDS_A_DAY, account_of, anchor_of
from heads.catalogue import Task
from tests.flows import test_gate_bootstrap as bootstrap
from tests.flows.test_account import METRIC, case_of, entry, table
from tests.flows.test_account import nights as draw_nights
from tests.flows.test_gate import gate, pair
from tests.flows.test_promotion import Nights, nights

MARGIN = Policy(METRIC, margin=0.01)
__all__ = ["nights"]


def test_at_no_difference_the_score_test_is_mcnemars() -> None:
    for fixed, broken in ((12, 5), (3, 30), (8, 8)):
        found = mcnemar([[50, fixed], [broken, 10]], exact=False, correction=False).statistic
        assert paired_score(fixed, broken, 60 + fixed + broken, 0.0) ** 2 == pytest.approx(found)


@pytest.mark.parametrize(("fixed", "broken", "n"), [(40, 52, 1000), (0, 3, 400), (10, 0, 300), (0, 0, 500)])
def test_the_score_test_has_the_variance_of_the_likeliest_table_that_loses_the_margin(fixed: int, broken: int, n: int) -> None:
    margin = 0.01

    def unlikely(share: float) -> float:
        # Shares of broken, fixed and other samples of a model that loses the margin; 0 log 0 is 0.
        cells = ((broken, share + margin), (fixed, share), (n - fixed - broken, 1 - 2 * share - margin))
        return -sum(count * np.log(chance) for count, chance in cells if count)

    share = minimize_scalar(unlikely, bounds=(1e-12, 0.49), method="bounded", options={"xatol": 1e-10}).x
    variance = n * (2 * share + margin - margin**2)
    assert paired_score(fixed, broken, n, -margin) == pytest.approx((fixed - broken + n * margin) / variance**0.5, rel=1e-4)


def test_a_loss_of_the_margin_passes_no_more_often_than_the_level() -> None:
    random, level = np.random.default_rng(0), first_level(0.05, 1000, 0.01).value
    drawn = random.multinomial(1000, (0.025, 0.035, 0.94), size=8000)
    passed = np.mean([norm.sf(paired_score(int(fixed), int(broken), 1000, -0.01)) < level for fixed, broken, _ in drawn])
    assert passed <= level + 3 * (level / 8000) ** 0.5
    assert first_level(0.05, 1000, 0.01).value < first_level(0.05, 1000).value


def test_a_challenger_as_good_as_the_champion_passes_and_is_not_called_superior() -> None:
    verdict = gate(*pair(2700, 40, 42, 218), MARGIN)
    assert verdict.promoted
    assert not verdict.superior
    assert [finding.guard for finding in verdict.findings[:2]] == ["non_inferior", "min_gain"]
    assert verdict.figures["margin_p_value"] == pytest.approx(norm.sf(paired_score(40, 42, 3000, -0.01)))
    assert verdict.reasons[0].startswith("-0.0007 (")
    assert "against the champion; a loss of 0.01 is ruled out: score test p = 0.002" in verdict.reasons[0]
    assert verdict.level_spent == first_level(0.05, 3000, 0.01).value
    assert not gate(*pair(2700, 40, 62, 198), MARGIN).promoted
    better = gate(*pair(2700, 90, 30, 180), MARGIN)
    assert better.promoted
    assert better.superior
    assert not gate(*pair(2700, 40, 42, 218)).promoted, "without a margin it has to be better"
    first = gate(pair(2700, 40, 42, 218)[0], None, MARGIN)
    assert first.promoted, "a first model has to beat a constant"
    assert first.superior


def test_two_models_that_answer_alike_pass_if_a_loss_would_show() -> None:
    for n, passes in ((3000, True), (100, False)):
        assert gate(*pair(n, 0, 0, 10), MARGIN).promoted == passes
        look = MeanLook(n, 0, 0.0, 0.0, 0.0, n)
        assert is_proven(look, 0.05, 0.01) == passes
        assert not is_proven(look, 0.05)
    assert not is_proven(MeanLook(3000, 0, 0.0, 0.0, 0.0, num_units=100), 0.05, 0.01), "3000 samples in 100 groups are 100"


@pytest.mark.parametrize(("size", "num_groups", "passes"), [(2, 12, False), (10, 300, False), (2, 1500, True)])
def test_groups_that_are_read_alike_rule_out_a_loss_only_if_it_would_show_in_so_many(
    size: int, num_groups: int, passes: bool
) -> None:
    after, before = pair(size * num_groups, 0, 0, 0)
    digests = sorted(row.digest for row in after.rows)
    together = {digest: f"g{number // size}" for number, digest in enumerate(digests)}
    verdict = decide(replace(case_of(before, [after]), policy=MARGIN, account=Account(), taken_together=together))
    assert verdict.promoted == passes
    unseen = 0.99**num_groups
    assert verdict.figures["margin_p_value"] == pytest.approx(unseen)
    assert f"chance that none of {num_groups} groups shows it p" in verdict.reasons[0]
    # As of so many single samples that are read alike.
    alone = paired_interval(0, 0, num_groups)
    assert (verdict.figures["gain_low"], verdict.figures["gain_high"]) == pytest.approx(alone)


def test_losses_are_counted_from_the_last_superior_model_so_that_they_cannot_add_up() -> None:
    anchor = table(np.arange(3000) < 2700, "anchor")
    champion = table(np.arange(3000) < 2692, "champion")
    candidate = table(np.arange(3000) < 2678, "candidate")
    alone = replace(case_of(champion, [candidate]), policy=MARGIN, account=Account())
    assert decide(alone).promoted, "a little worse than the champion"
    verdict = decide(replace(alone, anchor=anchor, anchor_name="version 1"))
    assert not verdict.promoted
    assert "-0.0073" in verdict.reasons[0]
    assert "a loss of 0.01 is not ruled out" in verdict.reasons[0]
    assert "version 1" in verdict.reasons[0]
    assert decide(replace(alone, anchor=table(np.arange(3000) < 2670, "anchor"))).promoted


def test_a_weekly_look_rules_the_loss_out_of_the_mean_of_seven() -> None:
    champion, challengers = draw_nights(0.0, n=6000)
    case = replace(case_of(champion, challengers, looks=2), policy=replace(MARGIN, margin=0.02))
    verdict = decide(case)
    look = case.mean_look
    assert verdict.promoted == (look.above(-0.02) >= least_z(0.05)) is True
    assert not verdict.superior
    assert verdict.figures["z"] == pytest.approx((look.gain + 0.02) / look.error)
    assert "a loss of 0.02 is ruled out" in verdict.reasons[0]
    narrow = decide(replace(case, policy=replace(MARGIN, margin=0.001)))
    assert not narrow.promoted
    assert narrow.figures.keys() == {"num_samples", "look", "least_z", "margin"}, "and tells nothing of the holdout"
    waiting = decide(replace(case, account=replace(case.account, days_since_look=2.0)))
    assert waiting.findings[0].guard == "non_inferior"
    assert "gathering evidence" in waiting.reasons[0]


def test_a_weekly_look_at_readers_that_are_all_alike_says_how_many_labels_would_show_a_loss() -> None:
    reader = np.arange(500) < 450
    challengers = [table(reader, f"c{number}") for number in range(7)]
    case = replace(case_of(table(reader, "champion"), challengers, looks=1), policy=replace(MARGIN, margin=0.005))
    verdict = decide(case)
    assert not verdict.promoted
    # As many as leave no more than the look's level that none of them is among the lost ones.
    wanted = int(np.ceil(np.log(norm.sf(least_z(0.05))) / np.log(0.995)))
    assert f"it might lie where none of these do; {wanted - 500} more labels would show it" in verdict.reasons[0]
    assert decide(replace(case, policy=replace(MARGIN, margin=0.02))).promoted


@pytest.mark.parametrize("task", bootstrap.TASKS)
def test_label_sets_and_masks_are_tested_by_what_samples_add_to_the_measure(task: Task) -> None:
    draw = bootstrap.DRAWN[task]
    old, new = draw(300, 0, 1.0, "old"), draw(300, 0, 1.0, "new")
    policy = Policy(bootstrap.METRIC[task], margin=0.1)
    case = replace(case_of(old, [new]), policy=policy, account=Account())
    verdict = decide(case)
    assert verdict.promoted
    (after,), (before,) = sample_values([case.after], case.before, task, case.measure)
    wanted = ttest_1samp(after - before, -0.1, alternative="greater").pvalue
    assert verdict.figures["margin_p_value"] == pytest.approx(wanted)
    assert not decide(replace(case, policy=replace(policy, margin=1e-4), candidate=draw(300, 0, 0.5, "worse"))).promoted


def test_champions_that_are_only_not_worse_have_no_account_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 20 * SECONDS_A_DAY)
    versions = {number: ModelVersion("m", number, (), {}, 0.0) for number in "12345"}
    history = [
        entry(number, day * SECONDS_A_DAY, champion_before=before, champion_after=after, promoted=number in "123", **more)
        for number, day, before, after, more in (
            ("1", 10, None, "1", {}),
            ("2", 11, "1", "2", {"figures": {"look": 1.0}}),
            ("3", 12, "2", "3", {"figures": {"look": 1.0}, "superior": False}),
            ("4", 13, "3", "3", {}),
            ("5", 14, "3", "3", {"figures": {"look": 2.0}}),
        )
    ]
    assert anchor_of(history, versions, versions["3"], METRIC).version == "2"
    assert anchor_of(history, versions, versions["3"], "label/f1_macro").version == "3", "judged by another measure"
    shared = {"metric": METRIC, "recipe": "r", "work_key": "own"}
    assert account_of(history, versions, versions["3"], tmp_path, **shared, anchor="2").num_looks == 2
    assert account_of(history, versions, versions["3"], tmp_path, **shared).num_looks == 1
    withdrawn = versions | {"2": replace(versions["2"], tags={"headstart.withdrawn": "true"})}
    assert anchor_of(history, withdrawn, versions["3"], METRIC).version == "1"
    assert anchor_of([], versions, versions["3"], METRIC).version == "3"


def test_a_plan_with_a_margin_promotes_what_is_as_good_and_then_asks_no_oftener_than_before(nights: Nights) -> None:
    rules = {"promotion": {"mode": "non_inferior", "margin": 0.03}}
    assert nights.night(1, **rules).verdict.promoted
    verdict = nights.night(2, **rules).verdict
    assert verdict.promoted
    assert [entry.superior for entry in nights.registry.history("m")] == [True, False]
    later = nights.night(3, **rules).verdict
    assert "gathering evidence" in later.reasons[0], "the new champion has no first look of its own"
    assert "look" not in later.figures


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"mode": "non_inferior"}, "mode non_inferior needs a margin: .* such as margin: 0.005"),
        ({"margin": 0.01}, "margin 0.01 means nothing with mode superior"),
        ({"mode": "non_inferior", "margin": 0.01, "min_gain": 0.1}, "min_gain 0.1 contradicts mode non_inferior"),
        ({"mode": "non_inferior", "margin": 0}, "margin"),
        ({"mode": "inferior"}, "mode: should be 'superior' or 'non_inferior', got 'inferior'"),
    ],
)
def test_a_margin_that_makes_no_sense_is_refused(rules: dict[str, object], words: str) -> None:
    with pytest.raises(AskedWrongly, match=words):
        parse_plan({"name": "a", "promotion": rules})
