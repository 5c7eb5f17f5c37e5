"""Stages without machines: what becomes of a variant that failed, and what a worker group may ask of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import cluster, job, stages
from flows.cluster import capacity
from flows.errors import AskedWrongly
from flows.plan import parse_plan
from flows.records import DataVersion, FailedVariant, Sample, ScoreTable, TrainedVariant, TrainResult, Verdict, Work, Workers
from flows.settings import Settings
from flows.stages import report, work
from flows.stages.agenda import Agenda, plan_works
from flows.stages.desk import Event


class Listening:
    """A desk that only keeps what was said at it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.said = settings, list[str]()

    def say(self, text: str) -> None:
        self.said.append(Event(text).text)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path)


@pytest.fixture
def agenda(tmp_path: Path) -> Agenda:
    rows = [(f"{n:032x}", split, ("a", "b")[n % 2]) for n, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2)]
    samples = tuple(Sample(digest, f"{digest}.png", split, {"label": label}) for digest, split, label in rows)
    version = DataVersion("d" * 32, "r" * 40, samples, tmp_path, ())
    plan = {"name": "x", "backbones": ["resnet18"], "weights": "none", "fit": {"learning_rate": [0.001, 5.0]}}
    return plan_works(parse_plan(plan), version)


def give_up(settings: Settings, work: Work) -> None:
    job.write_json(settings.storage / "work" / work.key / "failure.json", {"reason": "it diverged", "epochs": []})


def trained(work: Work) -> TrainedVariant:
    metrics = {"val/label/accuracy": 0.75, "val/label/loss": 0.5}
    return TrainedVariant(work.key, work.variant, False, metrics, 1, 1, 6, 0.1, Path())


def test_a_failed_variant_is_done_and_named_in_a_warning(settings: Settings, agenda: Agenda) -> None:
    desk: Any = Listening(settings)
    wild = agenda.works[1]
    give_up(settings, wild)
    assert [agenda.is_done(settings, each) for each in agenda.works] == [False, True]
    assert work._failed(desk, agenda, {wild.key: "run1"}) == (FailedVariant(wild.key, wild.variant, "it diverged", "run1"),)
    assert len(desk.said) == 1
    assert "learning_rate 5 failed and is left out of the ranking: it diverged" in desk.said[0]


def test_a_plan_whose_variants_all_failed_is_refused_with_every_reason(settings: Settings, agenda: Agenda) -> None:
    desk: Any = Listening(settings)
    for each in agenda.works:
        give_up(settings, each)
    with pytest.raises(
        AskedWrongly, match=r"every variant .* learning_rate 0\.001: it diverged; .* learning_rate 5: it diverged"
    ):
        work._failed(desk, agenda, {})


def test_the_report_names_a_failed_variant_apart_from_those_ranked(agenda: Agenda) -> None:
    tame, wild = agenda.works
    result = TrainResult((trained(tame),), 6, 0.1, (FailedVariant(wild.key, wild.variant, "it diverged", "run1"),))
    scores = work.Scores(result.variants[0], ScoreTable("", "d" * 32, (), {}), None, None)
    told = report._report(agenda, result, scores, work.Outcome(Verdict(False, ("too few",)), None), {})
    assert [one["variant_id"] for one in told["variants"]] == [tame.variant.variant_id]
    assert [(one["label"], one["reason"], one["run_id"]) for one in told["failed"]] == [
        (agenda.label(wild), "it diverged", "run1")
    ]
    assert len(stages.leaderboard(told)) == 1
    assert f"Failed and left out: {agenda.label(wild)}: it diverged" in stages.verdict_text(told)


def test_a_worker_group_that_this_machine_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(capacity, "local_gpus", lambda _: 1)
    monkeypatch.setattr(capacity.processes, "available_memory_bytes", lambda: 3 * 2**30)
    cluster.check(None, tmp_path, Workers(2, 0.5, 1))
    for workers, words in (
        (Workers(9), "9 of 1 CPUs need 9"),
        (Workers(9, cpus_per_worker=0.1), "lower workers.count"),
        (Workers(2, cpus_per_worker=8), "need 16"),
        (Workers(2, gpus_per_worker=1), "this machine has 1"),
        (Workers(8), r"8 workers needs 3\.9 GiB of free memory and this machine has 3\.0 GiB"),
    ):
        with pytest.raises(AskedWrongly, match=words):
            cluster.check(None, tmp_path, workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        ([], None, 0),
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, 2),
        (["nvidia0", "nvidia1"], "1", 1),
        (["nvidia0"], "", 0),
        (["nvidia0"], "-1", 0),
        (["dxg"], None, None),
    ],
)
def test_gpus_are_counted_without_their_driver(
    tmp_path: Path, devices: list[str], visible: str | None, expected: int | None
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert capacity.local_gpus(environ, tmp_path) == expected
