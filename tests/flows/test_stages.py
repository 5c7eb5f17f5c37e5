"""Stages without machines: what becomes of a variant that failed, and what a worker group may ask of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import cluster
from flows.cluster import capacity
from flows.errors import AskedWrongly
from flows.files import write_json
from flows.model_version import ModelVersion
from flows.places import Folder, StoredFile
from flows.plan import parse_plan
from flows.records import (
    DataVersion,
    FailedVariant,
    Finding,
    Mask,
    Sample,
    ScoreTable,
    TrainedVariant,
    TrainResult,
    Verdict,
    Work,
    Workers,
)
from flows.settings import Settings
from flows.stages import training
from flows.stages.planning import make_work_plan, plan_work, planned
from flows.stages.preview.foreseen import foresee_verdict
from flows.stages.reporting import closing, report, report_text
from flows.stages.reporting.report import Report, report_json
from flows.stages.reporting.report_text import leaderboard, verdict_text
from flows.stages.session import Event
from flows.stages.values import Challenge, FreshScores, PromotionResult, Scores, StoredBundle, WorkPlan
from flows.work_folder import WorkFolder
from flows.work_records import WorkFailure

TRAINING = "?workflowType=machine_learning"


class Listening:
    """A session that only keeps what was said at it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.said = settings, list[str]()

    def say(self, text: str) -> None:
        self.said.append(Event(text).text)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path)


@pytest.fixture
def work_plan(tmp_path: Path) -> WorkPlan:
    rows = [(f"{n:032x}", split, ("a", "b")[n % 2]) for n, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2)]
    samples = tuple(Sample(digest, f"{digest}.png", split, {"label": label}) for digest, split, label in rows)
    version = DataVersion("d" * 32, "r" * 40, samples, tmp_path, ())
    plan = {"name": "x", "backbones": ["resnet18"], "weights": "none", "fit": {"learning_rate": [0.001, 5.0]}}
    return make_work_plan(parse_plan(plan), version)


# Of each task: cells of two kinds, and what the holdout is told to lack that has the first alone.
CELLS = {
    "classification": (("a", "b"), "add test samples of 'b' (the holdout has none)"),
    "multilabel": (("a|b", "a|c"), "add test samples of 'c' (the holdout has none)"),
    "segmentation": (("masks/a.png", "masks/b.png"), "add test samples of '2' (the holdout has none)"),
    "tagging": (("tags: O O", "tags: O B-x"), "add test samples of 'x' (the holdout has none) or change promotion.metric"),
}


@pytest.mark.parametrize("task", CELLS)
def test_a_plan_says_what_the_verdict_will_say_of_a_holdout_that_can_prove_nothing(task: str, tmp_path: Path) -> None:
    cells, words = CELLS[task]
    folder = "texts" if task == "tagging" else "images"
    fields = {
        "backbones": ["lstm" if task == "tagging" else "resnet18"],
        "weights": "none",
        "heads": ["unet"] if task == "segmentation" else ["linear"],
    }

    def foreseen(tested: list[str], **promotion: object) -> str:
        told = [
            *(("train", cell) for cell in (cells[0], *cells) * 3),
            *(("val", cell) for cell in cells),
            *(("test", cell) for cell in tested),
        ]
        samples = tuple(Sample(f"{n:032x}", f"{folder}/{n}", split, {"label": cell}) for n, (split, cell) in enumerate(told))
        masks = {"masks/a.png": Mask("1" * 32, {1: 64}), "masks/b.png": Mask("2" * 32, {1: 32, 2: 32})}
        version = DataVersion("d" * 32, "r" * 40, samples, tmp_path, (), masks)
        return foresee_verdict(make_work_plan(parse_plan({"name": "x", **fields, "promotion": promotion}), version))

    alone = foreseen([cells[0]] * 18)
    assert alone.startswith("no first model can be promoted on this test split: ")
    why = (
        "is not defined on the 18" if task == "tagging" else "misreads none of 18 samples, so no model can be shown to be better"
    )
    assert why in alone
    assert alone.endswith(words)
    assert foreseen([cells[0]] * 14 + [cells[1]] * 20) == ""
    few = foreseen([cells[0]] * 2 + [cells[1]] * 2)
    assert "even a model without a mistake would reach" in few
    assert few.endswith("not below alpha 0.05; add test samples of other classes or raise alpha")
    assert foreseen([cells[0]] * 2 + [cells[1]] * 2, alpha=0.3) == ""
    assert "the holdout has no sample labelled for 'label'" in foreseen([])


def give_up(settings: Settings, work: Work) -> None:
    WorkFolder.of(settings.storage, work.key).write_failure(WorkFailure(work.key, "it diverged", ()))


def trained(work: Work) -> TrainedVariant:
    metrics = {"val/label/accuracy": 0.75, "val/label/loss": 0.5}
    return TrainedVariant(work.key, work.variant, False, metrics, 1, 1, 6, 0.1)


def test_a_failed_variant_is_done_and_named_in_a_warning(settings: Settings, work_plan: WorkPlan) -> None:
    session: Any = Listening(settings)
    wild = work_plan.works[1]
    give_up(settings, wild)
    assert [work_plan.is_done(settings, each) for each in work_plan.works] == [False, True]
    assert training._failed(session, work_plan, {wild.key: "run1"}) == (
        FailedVariant(wild.key, wild.variant, "it diverged", "run1"),
    )
    assert len(session.said) == 1
    assert "learning_rate 5 failed and is left out of the ranking: it diverged" in session.said[0]


def test_a_plan_whose_variants_all_failed_is_refused_with_every_reason(settings: Settings, work_plan: WorkPlan) -> None:
    session: Any = Listening(settings)
    for each in work_plan.works:
        give_up(settings, each)
    with pytest.raises(
        AskedWrongly, match=r"every variant .* learning_rate 0\.001: it diverged; .* learning_rate 5: it diverged"
    ):
        training._failed(session, work_plan, {})


def test_the_report_names_a_failed_variant_apart_from_those_ranked(work_plan: WorkPlan) -> None:
    tame, wild = work_plan.works
    result = TrainResult(
        (trained(tame),), 6, 0.1, (FailedVariant(wild.key, wild.variant, "it diverged", "run1"),), run_id="parent"
    )
    scores = Scores(candidate=result.variants[0], table=ScoreTable("", "d" * 32, (), {}))
    told = closing.make_report(work_plan, result, scores, PromotionResult(Verdict(False, ("too few",)), None), {})
    assert [one.variant_id for one in told.variants] == [tame.variant.variant_id]
    assert [(one.label, one.reason, one.run_id) for one in told.failed] == [(work_plan.label(wild), "it diverged", "run1")]
    assert len(leaderboard(told)) == 1
    assert f"Failed and left out: {work_plan.label(wild)}: it diverged" in verdict_text(told)


def reported(work_plan: WorkPlan, seconds: dict[str, float]) -> Report:
    """The report of a retraining of both variants, the second of which has no finite loss."""
    first, second = trained(work_plan.works[0]), trained(work_plan.works[1])
    exact = {"val/label/accuracy": 0.123456789012, "val/label/loss": float("nan")}
    result = TrainResult((replace(first, run_id="run1"), replace(second, run_id="run2", metrics=exact)), 6, 2.5, run_id="parent")
    version = ModelVersion("x", "3", ("champion",), {}, 0.0)
    verdict = Verdict(True, ("better",), {"gain": 0.1}, (Finding("paired_test", True, "better", {"gain": 0.1}, ("by far",)),))
    scores = Scores(candidate=result.variants[0], table=ScoreTable("", "d" * 32, (), {}))
    told = closing.make_report(work_plan, result, scores, PromotionResult(verdict, version), seconds)
    return replace(told, run_id="parent", experiment_id="7")


def test_what_is_printed_and_kept_of_a_report_has_these_names_in_this_order(work_plan: WorkPlan, tmp_path: Path) -> None:
    told = report.with_pages(reported(work_plan, {"total": 1.0}), "http://ml:5000")
    printed = report_json(told)
    run = ["run_id", "experiment_id", "page", "baseline"]
    assert list(printed) == [
        *("name", "key", "metric", "tasks", "data_version", "variants", "failed", "candidate", "holdout", "verdict"),
        *("model", "champion", "counts", "seconds", "why", *run, "judged", "other_baselines"),
    ]
    named = ["variant_id", "label", "backbone", "heads", "freeze", "run_id"]
    measured = ["reused", "metrics", "num_trained_parameters", "num_forwarded", "num_features_read", "seconds", "gpu_seconds"]
    assert list(printed["variants"][0]) == [*named, *measured, "page"]
    verdict = ["promoted", "reasons", "figures", "findings", "metric", "recipe", "level_spent", "superior", "waits", "fresh"]
    assert list(printed["verdict"]) == verdict
    assert list(printed["model"]) == ["name", "version", "aliases", "page"]
    plain = report.ReportedBaseline(kind="tfidf", label="TF-IDF regression", metrics={"val/label/accuracy": 0.1}, num_samples=7)
    told = replace(told, other_baselines=(plain,))
    assert [row["features read"] for row in leaderboard(told) if row["variant"] == "baseline (TF-IDF regression)"] == [0]
    finite = replace(told, variants=told.variants[:1])
    report.write_report(StoredFile(Folder(tmp_path), "report.json"), finite)
    assert report.read_report(StoredFile(Folder(tmp_path), "report.json")) == finite
    assert report.read_report(StoredFile(Folder(tmp_path), "nothing.json")) is None


def test_a_kept_report_of_before_there_were_tasks_pages_and_counts_is_read(work_plan: WorkPlan, tmp_path: Path) -> None:
    old = dict(report_json(replace(reported(work_plan, {}), model=None)))
    for name in ("tasks", "run_id", "experiment_id", "page"):
        del old[name]
    old["counts"] = {"samples": 8, "trunk_forwards": 6, "variants_trained": 2, "variants_reused": 0}
    for variant in old["variants"]:
        for name in ("num_forwarded", "num_features_read", "gpu_seconds", "page"):
            del variant[name]
    write_json(tmp_path / "old.json", old)
    found = report.read_report(StoredFile(Folder(tmp_path), "old.json"))
    assert found is not None
    assert (found.tasks, found.run_id, found.counts.flops_done, found.model) == ({}, None, 0, None)
    assert len(leaderboard(report.with_pages(found, "http://ml:5000"))) == 2
    assert report_text.pages(found) == {}


def test_a_leaderboard_has_four_digits_and_the_page_of_each_run(work_plan: WorkPlan) -> None:
    rows = leaderboard(report.with_pages(reported(work_plan, {}), "http://ml:5000"))
    assert [row["label/accuracy"] for row in rows] == [0.75, 0.1235]
    assert [row["loss"] for row in rows] == [0.5, None], "what is no number is none in JSON either"
    assert [row["run"] for row in rows] == [f"http://ml:5000/#/experiments/7/runs/{run}{TRAINING}" for run in ("run1", "run2")]
    assert all(len(str(row["seconds"])) < 6 for row in rows)
    assert list(rows[0])[:5] == ["variant", "label/accuracy", "loss", "state", "run"], "Prefect's page cuts what stands behind"


def with_baseline(told: Report, accuracy: float, note: str = "") -> Report:
    metrics = {"val/label/accuracy": accuracy, "val/label/loss": 0.6}
    plain = report.ReportedBaseline(
        kind="probe", label="logistic probe on resnet18", metrics=metrics, num_parameters=1026, note=note
    )
    return replace(told, baseline=plain)


def test_the_baseline_stands_in_the_leaderboard_where_it_belongs_and_is_no_candidate(work_plan: WorkPlan, tmp_path: Path) -> None:
    told = with_baseline(reported(work_plan, {}), 0.5)
    rows = leaderboard(report.with_pages(told, "http://ml:5000"))
    assert [row["state"] for row in rows] == ["candidate, trained", "not ranked", "trained"]
    assert rows[1]["variant"] == "baseline (logistic probe on resnet18)"
    assert (rows[1]["label/accuracy"], rows[1]["loss"], rows[1]["run"]) == (0.5, 0.6, None)
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"
    finite = replace(told, variants=told.variants[:1])
    report.write_report(StoredFile(Folder(tmp_path), "report.json"), finite)
    assert report.read_report(StoredFile(Folder(tmp_path), "report.json")) == finite


@pytest.mark.parametrize(
    ("accuracy", "note", "words"),
    [
        (0.5, "", "Baseline: logistic probe on resnet18, val/label/accuracy 0.5000\n"),
        (0.5, "fitted on few", "Baseline: logistic probe on resnet18, val/label/accuracy 0.5000; fitted on few\n"),
        (0.75, "", "val/label/accuracy 0.7500. **The candidate is not better on validation**: 0.7500\n"),
    ],
)
def test_a_verdict_names_the_baseline_and_says_if_the_candidate_is_not_better(
    work_plan: WorkPlan, accuracy: float, note: str, words: str
) -> None:
    assert words in verdict_text(with_baseline(reported(work_plan, {}), accuracy, note))


def test_a_verdict_links_to_the_retraining_its_candidate_and_the_version_where_mlflow_has_pages(work_plan: WorkPlan) -> None:
    told = report.with_pages(reported(work_plan, {}), "http://ml:5000")
    words = verdict_text(told)
    assert f"[this retraining](http://ml:5000/#/experiments/7/runs/parent{TRAINING})" in words
    assert f"[the candidate's run](http://ml:5000/#/experiments/7/runs/run1{TRAINING})" in words
    assert f"[version 3 of x](http://ml:5000/#/models/x/versions/3{TRAINING})" in words
    assert "http" not in verdict_text(told, links=False)
    without = report.with_pages(told, "sqlite:////a/mlflow.db")
    assert "MLflow" not in verdict_text(without)
    assert all("run" not in row for row in leaderboard(without))
    of_before = replace(told, run_id=None, experiment_id=None)
    assert "this retraining" not in verdict_text(report.with_pages(of_before, "http://ml:5000"))


def test_a_verdict_on_an_earlier_candidate_names_that_one_and_its_promotion_changes_the_champion(work_plan: WorkPlan) -> None:
    result = TrainResult((replace(trained(work_plan.works[0]), run_id="run1"),), 6, 2.5, run_id="parent")
    empty = ScoreTable("", "d" * 32, (), {})
    old, new, candidate = (ModelVersion("x", number, (), {}, 0.0) for number in "345")
    promoted = replace(new, aliases=("champion",))
    judged = Challenge(promoted, StoredBundle("", Path()), empty, old, empty)
    verdict, named = Verdict(True, ("proven",)), Verdict(False, ("the challenger from now on",))
    scores = Scores(candidate=result.variants[0], table=empty, champion=old, fresh=FreshScores(judged))
    told = closing.make_report(work_plan, result, scores, PromotionResult(verdict, candidate, judged, named), {})
    assert (told.judged, told.champion, told.model and told.model.version) == ("4", "4", "5")
    words = verdict_text(told)
    assert words.startswith("**Promoted**: challenger 4 of x\n")
    assert words.endswith("Champion of x: version 4 (this candidate is version 5)")


def test_the_seconds_of_the_stages_and_of_what_is_around_the_batches_add_up(work_plan: WorkPlan) -> None:
    told = reported(work_plan, {"data": 1.0, "train": 22.0, "score": 3.0, "other": 0.5, "total": 26.5}).seconds
    assert told == {"data": 1.0, "train": 2.5, "score": 3.0, "train_around": 19.5, "other": 0.5, "total": 26.5}
    assert sum(told.values()) - told["total"] == told["total"]
    assert list(told)[-1] == "total"
    joined = reported(work_plan, {"train": 1.0, "other": 0.5, "total": 1.5}).seconds
    assert joined == {"train": 1.0, "train_around": 0.0, "other": 0.5, "total": 1.5}, "its job had begun before"


def test_a_retraining_takes_the_agenda_that_was_made_of_its_plan_and_data_and_no_other(
    settings: Settings, work_plan: WorkPlan
) -> None:
    session: Any = Listening(settings)
    session.plan = work_plan.plan
    read_again = replace(work_plan.version, samples=work_plan.version.samples[:])
    with planned(work_plan):
        assert plan_work(session, read_again) is work_plan
        assert plan_work(session, replace(read_again, digest="e" * 32)).version.digest == "e" * 32
        session.plan = work_plan.plan.model_copy(update={"name": "y"})
        assert plan_work(session, read_again).plan.name == "y"
    assert plan_work(session, read_again) is not work_plan


def test_a_worker_group_that_this_machine_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(capacity, "local_gpus", lambda _: 1)
    monkeypatch.setattr(capacity.processes, "available_memory_bytes", lambda: 3 * 2**30)
    cluster.check(None, tmp_path, Workers(2, 0.5, 1))
    # Of a range as many are started as there are CPUs for.
    cluster.check(None, tmp_path, Workers(9, cpus_per_worker=2, least=2))
    for workers, words in (
        (Workers(9), "9 of 1 CPUs need 9"),
        (Workers(9, cpus_per_worker=0.1), "lower workers.count"),
        (Workers(2, cpus_per_worker=8), "need 16"),
        (Workers(2, gpus_per_worker=1), "this machine has 1"),
        (Workers(12, least=9), "9 of 1 CPUs need 9"),
        (Workers(12, gpus_per_worker=1, least=2), "2 of 1 GPUs need 2"),
        (Workers(99, least=2), r"8 workers needs 3\.9 GiB"),
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
