"""The promote stage over nights, with a real registry and ledger: when it looks, what it says, what a kill leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows import dataset, job, mlflow_tags
from flows.cli import models
from flows.gate import Case, Trials
from flows.gate.classes import compare_classes
from flows.gate.guards.table import TRIAL_GUARDS
from flows.job.holdout import leaks
from flows.job.holdout.scores import write_scores
from flows.job.job import read_job
from flows.model_version import ModelVersion
from flows.plan import Plan
from flows.records import DataVersion, Finding, Sample, ScoreTable, TrainedVariant, Weights, Work
from flows.registry import Registry, ledger, read_holdout, telling
from flows.stages.promotion import promote
from flows.stages.scoring import find_anchor
from flows.stages.trials.collect import COLLECTORS, TOGETHER
from flows.stages.values import PromotionResult, Scores, WorkPlan
from heads.errors import BundleError
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored
from tests.kills import killed_after

NUM_SAMPLES, DAY = 1000, 86_400.0
METRIC = "label/accuracy"
SAMPLES = (Sample("a" * 32, "a.png", "train", {"label": "dog"}), Sample("b" * 32, "b.png", "test", {"label": "cat"}))


class Versions(Registry):
    """A registry whose versions hold no files: to export a model for each night would take seconds."""

    def prepare(self, *_: Any) -> None:
        pass

    def register(
        self,
        name: str,
        *,
        work_key: str,
        data_version: str,
        variant_id: str,
        metrics: Mapping[str, float] = MappingProxyType({}),
        **_: Any,
    ) -> ModelVersion:
        for version in self.versions(name):
            if version.tags["headstart.work_key"] == work_key:
                return version
        if not self.versions(name):
            self._client.create_registered_model(name)
        tags = {"headstart.work_key": work_key, "headstart.data_version": data_version, "headstart.variant_id": variant_id}
        tags |= {mlflow_tags.BUNDLE_DIGEST: work_key * 8, mlflow_tags.HOLDOUT: telling.holdout_tag(metrics)}
        made = self._client.create_model_version(name, "mlflow-artifacts:/m", tags=tags)
        return self.find(name, str(made.version))


@dataclass
class Nights:
    """A workspace that retrains night by night; each night's candidate gains as told over the samples that are read rightly."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    now: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        self.registry = Versions(f"sqlite:///{self.folder / 'mlflow.db'}", self.folder / "ledger")
        self.chances = self.random.beta(0.45, 0.05, NUM_SAMPLES)
        self.monkeypatch.setattr(time, "time", lambda: self.now)
        self.monkeypatch.setattr(dataset, "head_commit", lambda _: "c0ffee")

    def table(self, key: str, gain: float) -> ScoreTable:
        right = (self.random.random(NUM_SAMPLES) < self.chances) | (np.arange(NUM_SAMPLES) < gain * 10 * NUM_SAMPLES)
        rows = tuple(Scored(f"{i:032}", "label", "cat", "cat" if ok else "dog", 0.9) for i, ok in enumerate(right))
        scores = ScoreTable(key * 8, "d1", rows, {METRIC: float(right.mean())}, {"label": "classification"})
        write_scores(job.scores_file(self.folder, scores.bundle_digest, "d1"), scores)
        return scores

    def judge(self, key: str, scores: ScoreTable, work: Work | None = None, **changes: Any) -> PromotionResult:
        """The stage's verdict on tonight's candidate, an hour's work before the next night's; its jobs run in this process."""
        plan = Plan.model_validate({"name": "m", "fit": {"seed": int(key, 16)}} | changes)
        untrained = Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(seed=int(key, 16)))
        work = work or Work(key, untrained, Weights("none"))
        version = DataVersion("d1", "r" * 40, SAMPLES, self.folder / "data", ())
        champion = self.registry.current("m").get("champion") if self.registry.models() else None
        table = job.read_scores(job.scores_file(self.folder, champion.bundle_digest, "d1")) if champion else None
        candidate = TrainedVariant(key, work.variant, False, {}, 1, 1, 1, 1.0, run_id="run")
        settings = SimpleNamespace(
            root=self.folder, storage=self.folder, workspace=self.folder, features=self.folder / "features"
        )
        session: Any = SimpleNamespace(
            plan=plan, registry=self.registry, settings=settings, say=lambda _: None, run_job=self.run_job
        )
        anchor = find_anchor(session, METRIC, champion)
        of_anchor = job.read_scores(job.scores_file(self.folder, anchor.bundle_digest, "d1")) if anchor else None
        judged = Scores(
            candidate=candidate,
            table=scores,
            champion=champion,
            champion_table=table,
            anchor=anchor,
            anchor_table=of_anchor,
            bundle=self.folder / "bundle",
        )
        return promote(session, WorkPlan(plan, version, (work,), METRIC, "k"), judged)

    def run_job(self, requested: job.Job) -> job.JobOutcome:
        return leaks.search(read_job(job.write_job(requested)))

    def night(self, number: int, gain: float = 0.0, **changes: Any) -> PromotionResult:
        self.now += DAY
        key = f"{number:08x}"
        return self.judge(key, self.table(key, gain), **changes)

    def told(self) -> dict[str, tuple[float, float]]:
        """How well each version reads the holdout, as its tags tell it, and exactly."""
        tags = {version.version: version.tags for version in self.registry.versions("m")}
        read = {
            version: job.read_scores(job.scores_file(self.folder, of[mlflow_tags.BUNDLE_DIGEST], "d1"))
            for version, of in tags.items()
        }
        return {v: (read_holdout(tags[v])[METRIC], scores.metrics[METRIC]) for v, scores in read.items() if scores}


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    # These candidates have no bundles that could be tried.
    for guard in ("loads", "latency"):
        monkeypatch.delitem(COLLECTORS, guard)  # type: ignore[arg-type]
    return Nights(tmp_path, monkeypatch)


def test_a_reign_has_one_look_at_its_first_challenger_and_then_one_a_week_at_the_recipe(nights: Nights) -> None:
    assert nights.night(1).verdict.promoted, "a first model, better than a constant answer"
    said = [nights.night(number).verdict for number in range(2, 17)]
    looks = [number for number, verdict in enumerate(said, start=2) if "look" in verdict.figures]
    assert looks == [2, 9, 16]
    assert "exact McNemar" in said[0].reasons[0]
    assert said[1].reasons == (
        "gathering evidence against champion 1: challenger 2 of 7 of this recipe, and the next look at the holdout is due in "
        "6 days",
    )
    assert said[-1].figures["look"] == 3
    better = [nights.night(number, 0.04).verdict for number in range(17, 31)]
    promoted = [number for number, verdict in enumerate(better, start=17) if verdict.promoted]
    assert promoted == [23], "at the first weekly look at seven of them"
    assert better[7].figures["look"] == 1, "the new champion's first challenger"
    assert nights.registry.current("m")["previous"].version == "1"
    for version, (shown, exact) in nights.told().items():
        assert shown == (exact if version in {"1", "2", "23", "24"} else round(exact, 2)), "first looks, and one that is proven"


def test_trials_are_made_only_of_a_candidate_that_could_be_promoted(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(_session: Any, _plan: WorkPlan, scores: Scores, /) -> Trials:
        tried.append(scores.candidate.key)
        return Trials(load_failure="torch is too old")

    def loads(case: Case) -> Finding | None:
        failure = case.trials.load_failure
        return None if failure is None else Finding("loads", not failure, f"the bundle does not load: {failure}")

    def count_tests(*args: Any, **options: Any) -> Any:
        tests.append(None)
        return compare_classes(*args, **options)

    tried, tests = list[str](), list[None]()
    monkeypatch.setattr("flows.gate.case.compare_classes", count_tests)
    monkeypatch.setitem(COLLECTORS, "loads", collect)  # type: ignore[arg-type]
    monkeypatch.setitem(TRIAL_GUARDS, "loads", loads)  # type: ignore[arg-type]
    off, warn = ({"promotion": {"guards": {"loads": severity}}} for severity in ("off", "warn"))
    assert nights.night(1, **off).verdict.promoted
    assert not tried
    tests.clear()
    blocked = nights.night(2, 0.09)
    assert len(tests) == 1, "the trials are added to what was decided on the scores"
    assert not blocked.verdict.promoted
    assert "the bundle does not load: torch is too old" in blocked.verdict.reasons
    assert nights.registry.current("m")["champion"].version == "1"
    nights.night(3)
    assert tried == ["00000002"], "the third night could not promote"
    other = Nights(nights.folder / "other", monkeypatch)
    warned = other.night(1, **warn)
    assert warned.verdict.promoted
    assert "warning: the bundle does not load: torch is too old" in warned.verdict.reasons
    [entry] = other.registry.history("m")
    assert (entry.findings[-1].guard, entry.findings[-1].blocks, entry.reasons) == ("loads", False, warned.verdict.reasons)


def test_every_measurement_is_made_alone_or_beside_others() -> None:
    assert sorted(guard for line in TOGETHER for guard in line) == sorted(COLLECTORS)


def test_the_bundle_is_tried_beside_the_search_for_leaks_and_seconds_are_measured_alone(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, tried, threads = threading.Barrier(2, timeout=20), list[str](), dict[str, int]()

    def collector(guard: str) -> Callable[..., Trials]:
        def collect(*_: Any) -> Trials:
            threads[guard] = threading.get_ident()
            if guard in ("leaks", "loads"):
                both.wait()
                tried.append(guard)
            else:
                assert sorted(tried) == ["leaks", "loads"]
            return Trials(load_failure="") if guard == "loads" else Trials()

        return collect

    for guard in ("leaks", "loads", "latency"):
        monkeypatch.setitem(COLLECTORS, guard, collector(guard))  # type: ignore[arg-type]
    verdict = nights.night(1).verdict
    assert verdict.promoted
    assert any(finding.guard == "loads" and finding.passed for finding in verdict.findings)
    assert threads["leaks"] == threads["latency"] == threading.get_ident() != threads["loads"], "an interrupt stops the job"


def test_another_plan_is_another_recipe_and_a_seed_is_none(nights: Nights) -> None:
    nights.night(1)
    nights.night(2)
    assert "challenger 2 of 7" in nights.night(3).verdict.reasons[0]
    assert "challenger 1 of 7" in nights.night(4, weights="none").verdict.reasons[0]
    assert "challenger 3 of 7" in nights.night(5).verdict.reasons[0]


def test_a_champion_that_comes_back_goes_on_with_its_own_account(nights: Nights) -> None:
    nights.night(1)
    assert nights.night(2, 0.09).verdict.promoted
    nights.registry.rollback("m")
    assert nights.registry.current("m")["champion"].version == "1"
    assert "look" not in nights.night(3).verdict.figures, "its first look was taken"


# After which call of which step: of a promotion `_move` points previous and champion, of a challenger that alone.
KILLS = [
    *((0.0, step, 1) for step in ("register", "record", "_move")),
    *((0.09, step, 1) for step in ("register", "_keep", "_describe")),
    *((0.09, "_move", call) for call in (1, 2)),
]


@pytest.mark.parametrize(("gain", "killed_in", "call"), KILLS)
def test_a_retraining_that_is_killed_comes_to_the_same_verdict_and_promotes_once(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, gain: float, killed_in: str, call: int
) -> None:
    nights.night(1)
    nights.now += DAY
    scores = nights.table("00000002", gain)
    with killed_after(monkeypatch, Versions, killed_in, call):
        nights.judge("00000002", scores)
    nights.now += DAY / 24
    is_champion = nights.registry.current("m")["champion"].version == "2"
    again = nights.judge("00000002", scores).verdict
    if is_champion:
        assert "is the champion already" in again.reasons[0]
    else:
        assert again.promoted == bool(gain)
    history = nights.registry.history("m")
    assert [(entry.version, entry.promoted) for entry in history] == [("1", True), ("2", bool(gain))]
    aliases = {alias: version.version for alias, version in nights.registry.current("m").items()}
    assert aliases == ({"champion": "2", "previous": "1"} if gain else {"champion": "1", "challenger": "2"})
    assert len(nights.registry.versions("m")) == 2


def damaged(*_: Any, **__: Any) -> None:
    """In the place of `register`."""
    raise BundleError("weights.safetensors is not what was written")


@pytest.mark.parametrize("killed_in", ["_keep", "append", None])
def test_the_look_at_a_candidate_that_cannot_be_registered_is_in_the_ledger_once_and_counts(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, killed_in: str | None
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    nights.night(1)
    nights.now += DAY
    scores = nights.table("00000002", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Versions, "register", damaged)
        if killed_in:
            with monkeypatch.context() as dying:
                dying.setattr(Versions if killed_in == "_keep" else ledger, killed_in, killed)
                with pytest.raises(KeyboardInterrupt):
                    nights.judge("00000002", scores)
        promotions = [nights.judge("00000002", scores) for _ in range(2)]
    assert [promotion.model for promotion in promotions] == [None, None]
    assert all("exact McNemar" in promotion.verdict.reasons[0] for promotion in promotions), "the same verdict again"
    (nights.folder / "ledger" / "m.jsonl").unlink()
    _, entry = nights.registry.history("m")
    assert (entry.version, entry.work_key, entry.data_version, entry.git_commit) == ("", "00000002", "d1", "c0ffee")
    assert entry.level_spent == pytest.approx(0.0445)
    assert entry.reasons[-1].endswith("cannot be used where it is served: weights.safetensors is not what was written")
    assert "look" not in nights.night(3).verdict.figures, "the first look was taken"
    assert len(nights.registry.versions("m")) == 2
    monkeypatch.setattr(models, "_registry", lambda _: nights.registry)
    shown = CliRunner().invoke(models.app, ["history", "m"], env={"COLUMNS": "200"}).stdout
    assert [line.split("│")[2].strip() for line in shown.splitlines() if "UTC" in line] == ["1", "none", "2"]


def test_a_better_candidate_that_cannot_be_registered_fails_the_night_and_its_look_counts(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.night(1)
    with monkeypatch.context() as patched:
        patched.setattr(Versions, "register", damaged)
        with pytest.raises(BundleError):
            nights.night(2, 0.09)
    entry = nights.registry.history("m")[-1]
    assert (entry.promoted, entry.champion_after, entry.version) == (False, "1", "")
    assert "look" not in nights.night(3, 0.09).verdict.figures
    assert nights.registry.current("m")["champion"].version == "1"


def test_a_first_model_that_cannot_be_registered_is_in_the_ledger_of_a_model_without_versions(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Versions, "register", damaged)
        with pytest.raises(BundleError):
            nights.night(1)
    assert [(entry.version, entry.promoted) for entry in nights.registry.history("m")] == [("", False)]
    assert nights.night(2).verdict.promoted
    assert [entry.version for entry in nights.registry.history("m")] == ["", "1"]
