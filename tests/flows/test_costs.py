"""What a retraining counts: samples, arithmetic and seconds, and how far it tells that it is."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import job
from flows.files import write_json
from flows.job.costs import ExtractionCosts, PassCost, costs_of
from flows.plan import parse_plan
from flows.records import DataVersion, Sample, ScoreTable, TrainedVariant, TrainResult, Verdict, Weights, Work, Workers
from flows.settings import Settings
from flows.stages import progress
from flows.stages.planning import make_work_plan
from flows.stages.reporting import closing
from flows.stages.reporting.report import Counts
from flows.stages.reporting.report_text import leaderboard
from flows.stages.session import Event
from flows.stages.values import PromotionResult, Scores, WorkPlan
from heads.spec import Fit, Head, Variant
from heads.training.state import Epoch, TrainingOutcome
from heads.trunks.pricing import epoch_multiply_adds

NUM_TRAIN, NUM_VAL = 6, 2


@pytest.fixture
def version(tmp_path: Path) -> DataVersion:
    splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL + ["test"] * 2
    rows = [Sample(f"{n:032x}", f"{n}.png", split, {"label": "ab"[n % 2]}) for n, split in enumerate(splits)]
    return DataVersion("d" * 32, "r" * 40, tuple(rows), tmp_path, ())


def work_of(freeze: str) -> Work:
    fit = Fit(epochs=3, image_size_px=64)
    return Work(freeze, Variant(backbone="mobilenet_v2", heads=(Head(target="label"),), freeze=freeze, fit=fit), Weights("w"))


def order_of(tmp_path: Path, version: DataVersion, **workers: Any) -> job.Job:
    return job.Job("train", "k", "tiny", tmp_path, version, {"label": ("a", "b")}, Workers(**workers))


def outcome_of(*epochs: tuple[int, int]) -> TrainingOutcome:
    """Epochs of two seconds each, with so many (frozen stages, images forwarded)."""
    rows = [Epoch(n, 0, {}, 2.0, images, 0.1, (0.0, 0.0), frozen) for n, (frozen, images) in enumerate(epochs)]
    return TrainingOutcome(tuple(rows), 0, {}, {}, {}, sum(images for _, images in epochs), "all epochs")


def test_the_time_of_filling_the_store_is_shared_and_outlives_a_kill(
    tmp_path: Path, version: DataVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0.0, 4.0)
    monkeypatch.setattr(job.costs, "monotonic", lambda: next(ticks))
    order = order_of(tmp_path, version, count=2, gpus_per_worker=0.5)
    order.folder.write_shares({"all": 10.0})
    costs = ExtractionCosts(order, leads=True)
    shared, own = PassCost(4, 400, ("all", "lp_ft")), PassCost(2, 100, ("all",))
    costs.announce([shared, own])
    assert order.folder.num_stored() == (0, 6)
    costs.begin(shared)
    costs.note(3)
    assert (order.folder.num_stored(), order.folder.flops_stored()) == ((3, 6), 300)
    costs.note(1)
    costs.begin(own)
    costs.note(2)
    assert (order.folder.num_stored(), order.folder.flops_stored()) == ((6, 6), 500)
    assert order.folder.num_fetched() == 0
    order.folder.write_fetched(3)
    order.folder.write_fetched(5)
    assert order.folder.num_fetched() == 5, "the process's own number, written anew"
    shares = order.folder.read_shares()
    # Two looks at the clock for the pass that both share, one for the other's own: four seconds each.
    assert shares == {"all": 10 + 8 / 2 + 4, "lp_ft": 8 / 2}
    probe, tuned = (costs_of(order, work_of(freeze), outcome_of((9, 0), (9, 0))) for freeze in ("all", "lp_ft"))
    assert probe.seconds == pytest.approx(4 + shares["all"], abs=1e-3)
    # A probe held one worker for its own epochs and both for what was shared.
    assert probe.gpu_seconds == pytest.approx(0.5 * (4 + 2 * shares["all"]), abs=1e-3)
    assert tuned.shared_seconds == pytest.approx(shares["lp_ft"], abs=1e-3)
    order.folder.forget()
    assert (order.folder.num_fetched(), order.folder.flops_stored()) == (0, 0)


def test_a_member_that_does_not_lead_leaves_the_shares_to_the_leader(tmp_path: Path, version: DataVersion) -> None:
    order = order_of(tmp_path, version)
    costs = ExtractionCosts(order, leads=False)
    costs.begin(PassCost(1, 1, ("all",)))
    costs.note(1)
    assert order.folder.read_shares() == {}
    assert order.folder.num_stored() == (1, 1)


def test_epochs_that_read_features_are_told_from_those_that_forward_images(tmp_path: Path, version: DataVersion) -> None:
    order, tuned, images = order_of(tmp_path, version, count=3, gpus_per_worker=1), work_of("lp_ft"), NUM_TRAIN + NUM_VAL
    costs = costs_of(order, tuned, outcome_of((9, 0), (0, images), (0, images)))
    assert (costs.num_forwarded, costs.num_features_read) == (2 * images, images)
    thawed, probed = (epoch_multiply_adds(tuned.variant, frozen, NUM_TRAIN, NUM_VAL) for frozen in (0, 9))
    assert (costs.flops, costs.flops_alone) == (2 * thawed, 2 * thawed + probed)
    assert (costs.seconds, costs.gpu_seconds) == (6.0, 18.0)


@pytest.fixture
def work_plan(version: DataVersion) -> WorkPlan:
    fit = {"epochs": 4, "learning_rate": [0.001, 0.01]}
    return make_work_plan(parse_plan({"name": "x", "backbones": ["squeezenet1_1"], "weights": "none", "fit": fit}), version)


def trained(each: Work, *, reused: bool, forwarded: int, read: int, flops: int, alone: int) -> TrainedVariant:
    metrics = {"val/label/accuracy": 0.75, "val/label/loss": 0.5}
    counts = {"num_features_read": read, "gpu_seconds": 3.0, "flops": flops, "flops_alone": alone}
    return TrainedVariant(each.key, each.variant, reused, metrics, 1, 1, forwarded, 1.5, **counts)  # type: ignore[arg-type]


def test_a_report_counts_what_was_done_now_and_saved_by_it(work_plan: WorkPlan) -> None:
    first, second = work_plan.works
    variants = (
        trained(first, reused=True, forwarded=99, read=99, flops=99, alone=99),
        trained(second, reused=False, forwarded=8, read=24, flops=30, alone=100),
    )
    result = TrainResult(variants, 20, 0.1, (), flops_stored=10, num_fetched=7, run_id="parent")
    scores = Scores(candidate=variants[0], table=ScoreTable("", "d" * 32, (), {}))
    told = closing.make_report(work_plan, result, scores, PromotionResult(Verdict(False, ("too few",)), None), {})
    assert told.counts == Counts(
        samples=10,
        trunk_forwards=20,
        features_read=24,
        flops_done=40,
        flops_saved=60,
        variants_trained=1,
        variants_reused=1,
        samples_fetched=7,
    )
    assert [(one.seconds, one.gpu_seconds) for one in told.variants] == [(1.5, 3.0)] * 2
    assert [(row["images forwarded"], row["features read"]) for row in leaderboard(told)] == [(99, 99), (8, 24)]


class Telling:
    """A session whose listeners fail at first."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.told = settings, list[Event]()

    def tell(self, event: Event) -> None:
        self.told.append(event)
        if len(self.told) == 1:
            raise RuntimeError("the server hiccups")


def test_progress_counts_features_first_and_then_epochs_and_no_listener_ends_it(
    tmp_path: Path, work_plan: WorkPlan, version: DataVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
    settings = Settings(workspace=tmp_path)
    session: Any = Telling(settings)
    order = order_of(settings.storage, version)
    first = work_plan.works[0]

    def wait_for(is_so: Callable[[Event], bool]) -> Event:
        for _ in range(500):
            if session.told and is_so(session.told[-1]):
                return session.told[-1]
            time.sleep(0.02)
        raise AssertionError(session.told)

    with caplog.at_level(logging.WARNING), progress.showing_progress(session, work_plan, order):
        assert wait_for(lambda event: event.epochs != {}).features is None
        order.folder.write_to_store(8)
        write_json(order.folder.place.path / "stored-here-1.json", {"num_samples": 2, "flops": 1})
        assert wait_for(lambda event: event.features == (2, 8)).share == 0.125
        write_json(order.folder.place.path / "stored-here-2.json", {"num_samples": 6, "flops": 1})
        assert wait_for(lambda event: event.features == (8, 8)).share == 0.5
        order.folder.note_epochs(first.key, 4)
        last = wait_for(lambda event: event.share == 0.75)
        assert last.epochs[work_plan.label(first)] == (4, 4)
    assert "the server hiccups" in caplog.text
    assert session.told[-1] == Event(share=1.0)
    shares = [event.share for event in session.told]
    assert shares == sorted(shares)
