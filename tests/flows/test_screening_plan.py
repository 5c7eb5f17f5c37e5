"""Screening before anything runs: who is screened, by what keys, what a plan may not ask, and what `headstart plan` says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import job
from flows.cli import planning
from flows.errors import AskedWrongly
from flows.files import write_json
from flows.job.job import read_job
from flows.plan import Plan, expand, parse_plan, screening_keys, work_key
from flows.records import DataVersion, Sample, Work
from flows.settings import Settings
from flows.stages.planning import make_work_plan
from flows.stages.preview.cost_estimate import STEP_SECONDS, estimate_costs
from flows.stages.preview.costs import Costs
from flows.stages.training import train
from flows.stages.values import WorkPlan
from heads.trunks.pricing import epoch_multiply_adds, forward_multiply_adds

NUM_TRAIN, NUM_VAL, SIZE_PX, EPOCHS = 10, 5, 64, 6
# A third of the epochs probe.
TUNED_EPOCHS = 4


def plan(**fields: Any) -> Plan:
    """Four variants that probe before they fine-tune, of which two go on, and four that train everything."""
    fit = {"epochs": EPOCHS, "image_size_px": SIZE_PX, "learning_rate": [0.01, 0.001], **fields.pop("fit", {})}
    told = {"name": "x", "backbones": ["squeezenet1_1"], "weights": "none", "heads": ["linear", "mlp"]}
    return parse_plan(told | {"freeze": ["lp_ft", "none"], "screening": 2, "fit": fit} | fields)


@pytest.fixture
def version(tmp_path: Path) -> DataVersion:
    splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
    samples = tuple(Sample(f"{n:032x}", f"{n}.png", split, {"label": "ab"[n % 2]}) for n, split in enumerate(splits))
    return DataVersion("d" * 32, "r" * 40, samples, tmp_path, ())


def keys(asked: Plan, version: DataVersion) -> dict[str, str]:
    """The work keys of the plan's variants, by variant id."""
    return {work.variant.variant_id: work.key for work in make_work_plan(asked, version).works}


def test_screening_is_among_the_variants_that_probe_before_they_fine_tune(version: DataVersion) -> None:
    asked = plan(freeze=["lp_ft", "gradual", "none"])
    variants = expand(asked, version)
    rivals = {variant.variant_id for variant in variants if variant.freeze == "lp_ft"}
    by_variant = screening_keys(asked, version, variants)
    assert by_variant.keys() == rivals
    assert len(rivals) == 4
    assert len(set(by_variant.values())) == 1, "all of them are rivals"
    works = make_work_plan(asked, version).works
    assert [work.is_screened for work in works] == [work.variant.freeze == "lp_ft" for work in works]


@pytest.mark.parametrize("fields", [{"screening": 4}, {"screening": 9}, {"screening": None}, {"fit": {"epochs": 1}}])
def test_there_is_no_screening_where_all_go_on_or_nobody_fine_tunes(version: DataVersion, fields: dict[str, Any]) -> None:
    asked = plan(**fields)
    assert screening_keys(asked, version, expand(asked, version)) == {}
    assert keys(asked, version) == keys(plan(**(fields | {"screening": None})), version), "the work is that of a plan without it"


def test_the_same_variant_is_the_same_work_only_among_the_same_rivals_by_the_same_rules(version: DataVersion) -> None:
    usual = keys(plan(), version)
    rivals = {v.variant_id for v in expand(plan(), version) if v.freeze == "lp_ft"}
    for other in (
        plan(screening=None),
        plan(screening=1),
        plan(promotion={"metric": "label/f1_macro"}),
        plan(heads=["linear", "mlp", "cosine"]),
    ):
        found = keys(other, version)
        assert {variant for variant in usual if found[variant] == usual[variant]} == usual.keys() - rivals
        assert make_work_plan(other, version).key != make_work_plan(plan(), version).key
    for same in (plan(name="y"), plan(heads=["mlp", "linear"]), plan(freeze=["none", "lp_ft"]), plan(workers={"count": 2})):
        assert keys(same, version) == usual
    assert keys(plan(freeze=["lp_ft"]), version).items() <= usual.items(), "who only trains beside a screening is the same"


def test_a_works_key_in_a_screening_or_without_one_is_that_under_which_earlier_versions_left_it(version: DataVersion) -> None:
    asked = plan(heads=["linear"], screening=1, freeze=["lp_ft"])
    by_variant = screening_keys(asked, version, expand(asked, version))
    assert by_variant == dict.fromkeys(("f8b35f2cfded", "d1185a6c2dc2"), "817b58c4270a0f27")
    found = keys(asked, version)
    assert found == {variant: work_key(variant, "none", "d" * 32, key) for variant, key in by_variant.items()}
    assert set(keys(plan(freeze=["none"], heads=["linear"], screening=None), version).values()) == {
        "cbfde7cb03150a2f",
        "f7b6095ae85a1b10",
    }
    assert found == {"f8b35f2cfded": "752f11c50378a1e9", "d1185a6c2dc2": "c8e90fb5804597ba"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"freeze": ["all"], "weights": "imagenet"}, r"screening 2 .* freeze lists all; add lp_ft, or leave screening out"),
        ({"freeze": ["none", "gradual"]}, r"screening 2 .* freeze lists none, gradual; add lp_ft"),
        ({"screening": 0}, r"screening: should be at least 1, got 0"),
        ({"screening": 1.5}, r"screening: should be a whole number, got 1\.5"),
        ({"screening": "two"}, r"screening: should be a whole number, got 'two'"),
    ],
)
def test_a_screening_of_nobody_or_of_no_number_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(AskedWrongly, match=words):
        plan(**fields)


def costs(work_plan: WorkPlan) -> Costs:
    return estimate_costs(Settings(workspace=work_plan.version.data), work_plan, calibrate=False)


def finish(work_plan: WorkPlan, work: Work) -> None:
    write_json(Settings(workspace=work_plan.version.data).storage / "work" / work.key / "result.json", {})


def test_a_plan_counts_the_fine_tuning_of_those_who_go_on_and_every_probe(version: DataVersion) -> None:
    work_plan, without = (make_work_plan(plan(freeze=["lp_ft"], screening=screening), version) for screening in (2, None))
    tuning = TUNED_EPOCHS * epoch_multiply_adds(work_plan.works[0].variant, 0, NUM_TRAIN, NUM_VAL, stored=False)
    probing = (NUM_TRAIN + NUM_VAL) * forward_multiply_adds("squeezenet1_1", SIZE_PX)
    assert costs(work_plan).estimate.flops == probing + 2 * tuning
    assert costs(without).estimate.flops == probing + 4 * tuning


def test_the_seconds_of_a_plan_hold_the_probes_of_all_whoever_goes_on(version: DataVersion) -> None:
    one, two = (costs(make_work_plan(plan(freeze=["lp_ft"], screening=keep, fit={"batch_size": 1}), version)) for keep in (1, 2))
    without_tuning = 2 * one.estimate.seconds - two.estimate.seconds
    steps = 4 * (EPOCHS - TUNED_EPOCHS) * (NUM_TRAIN + NUM_VAL)
    assert without_tuning == pytest.approx(one.trunks[0].seconds + steps * STEP_SECONDS, abs=0.02)


def test_a_plan_says_which_phases_are_only_run_by_winners(version: DataVersion, capsys: pytest.CaptureFixture[str]) -> None:
    told = costs(make_work_plan(plan(), version)).images
    assert [(one.epochs, one.is_screened) for one in told] == 2 * ([(TUNED_EPOCHS, True)] * 2 + [(EPOCHS, False)] * 2)
    planning._show_phases([one for one in told if one.is_screened], "image")
    words = "  16 epochs of 4 variants (at most: only the best of their screening): the whole backbone is trained"
    assert words in capsys.readouterr().out
    planning._show_phases([one for one in told if not one.is_screened], "image")
    assert "screening" not in capsys.readouterr().out


def test_after_a_screening_only_its_winners_are_left_to_pay_for(version: DataVersion) -> None:
    work_plan = make_work_plan(plan(freeze=["lp_ft"]), version)
    probing = (NUM_TRAIN + NUM_VAL) * forward_multiply_adds("squeezenet1_1", SIZE_PX)
    tuning = (costs(work_plan).estimate.flops - probing) // 2
    for loser in work_plan.works[:2]:
        finish(work_plan, loser)
    assert costs(work_plan).estimate.flops == probing + 2 * tuning
    finish(work_plan, work_plan.works[2])
    assert costs(work_plan).estimate.flops == probing + tuning


def test_variants_that_can_probe_on_images_alone_are_not_told_to_be_screened(version: DataVersion) -> None:
    work_plan = make_work_plan(plan(freeze=["lp_ft"], fit={"mixup": 0.2}), version)
    without = make_work_plan(plan(freeze=["lp_ft"], fit={"mixup": 0.2}, screening=None), version)
    assert not any(one.is_screened for one in costs(work_plan).images)
    assert costs(work_plan).estimate.flops == costs(without).estimate.flops


class Tracker:
    """As much of a tracker as a training needs before its job."""

    def repair(self) -> None: ...


class Submitted(Exception):
    """Ends a training where its job would be submitted."""


@pytest.mark.parametrize("screening", [2, None])
def test_the_job_is_told_how_many_go_on_and_by_what_measure(version: DataVersion, screening: int | None) -> None:
    asked = plan(screening=screening, promotion={"metric": "label/f1_macro"})
    session: Any = SimpleNamespace(settings=Settings(workspace=version.data), plan=asked, tracker=Tracker(), flow_run_id="")
    session.start_run = lambda *_: "parent"
    session.say = session.tell = lambda _: None
    orders: list[job.Job] = []

    def submit(order: job.Job) -> None:
        orders.append(order)
        raise Submitted

    session.run_job = submit
    with pytest.raises(Submitted):
        train(session, make_work_plan(asked, version))
    read = read_job(job.write_job(orders[0]))
    assert read.screening == (None if screening is None else job.Screening(2, "label/f1_macro"))
    assert [work.is_screened for work in read.works] == [screening == 2 and work.variant.freeze == "lp_ft" for work in read.works]
