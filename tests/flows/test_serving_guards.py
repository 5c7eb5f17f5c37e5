"""The guards of serving, on real bundles through the promote stage: what does not load is not promoted, what is slow is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import quantile_test

from flows import dataset, gate, mlflow_tags
from flows.errors import HeadstartError
from flows.gate.guards.latency import latency, median_ratio
from flows.gate.trials import Serving, Trials
from flows.job.holdout.scoring import score_shard
from flows.model_version import ModelVersion
from flows.plan import Plan
from flows.records import DataVersion, Sample, ScoreTable, TrainedVariant, Weights, Work
from flows.registry import Registry
from flows.stages.promotion import promote
from flows.stages.trials import clean_process
from flows.stages.trials import serving as serving_trials
from flows.stages.values import PromotionResult, Scores, WorkPlan
from flows.workspace import md5_of
from heads import bundle as bundles
from heads.data.image_transforms import preprocess_for
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored

CLASSES = {"label": ("ant", "bee")}
METRIC = "label/accuracy"
NUM_SAMPLES, NUM_GAINED = 30, 12


class Versions(Registry):
    """A registry that keeps bundles as they are: to export each would take seconds. Raises BundleError as the real one does."""

    def register(self, name: str, *, bundle: Path, work_key: str, **_: Any) -> ModelVersion:
        bundles.load(bundle)
        if not self.versions(name):
            self._client.create_registered_model(name)
        tags = {"headstart.work_key": work_key, mlflow_tags.BUNDLE_DIGEST: bundles.digest(bundle)}
        made = self._client.create_model_version(name, str(bundle.parent), tags=tags)
        return self.find(name, str(made.version))


@dataclass
class Place:
    """Labelled images on which bundles are judged, each model by a name of its own."""

    folder: Path
    registry: Registry
    version: DataVersion
    said: list[str] = field(default_factory=list)

    def bundle(self, name: str, image_size_px: int = 64) -> Path:
        variant = Variant(
            backbone="squeezenet1_1", heads=(Head(target="label"),), fit=Fit(image_size_px=image_size_px, seed=len(name))
        )
        model, preprocess = build_model(variant, CLASSES, None), preprocess_for("squeezenet1_1", image_size_px)
        path = self.folder / name / "bundle"
        return bundles.save(path, model=model, variant=variant, classes=CLASSES, preprocess=preprocess, facts={})

    def rows(self, bundle: Path) -> list[Scored]:
        """The bundle's answers as they are scored, all of them right."""
        (told,) = score_shard([str(bundle)], self.version.only(["test"]), False, 1)
        return [replace(row, truth=row.predicted, probabilities={}) for row in told]

    def judge(self, name: str, bundle: Path, rows: list[Scored], digest: str, **guards: str) -> PromotionResult:
        """The stage's verdict on a bundle with these rows, against a champion that is wrong on some of them."""
        plan = Plan.model_validate({"name": name, "promotion": {"guards": {"leaks": "off"} | guards}})
        variant = Variant(backbone="resnet18", heads=(Head(target="label"),))
        candidate = TrainedVariant(name, variant, False, {}, 1, 1, 1, 1.0, run_id="run")
        champion = self.registry.current(name).get("champion")
        worse = [replace(row, predicted="?") if number < NUM_GAINED else row for number, row in enumerate(rows)]
        tables = [
            ScoreTable(named, "d1", tuple(of), {METRIC: np.mean([row.truth == row.predicted for row in of]).item()}, TASKS)
            for named, of in ((digest, rows), (champion.bundle_digest if champion else "", worse))
        ]
        settings = SimpleNamespace(root=self.folder, storage=self.folder, workspace=self.folder)
        session: Any = SimpleNamespace(plan=plan, registry=self.registry, settings=settings, say=self.said.append)
        work_plan = WorkPlan(plan, self.version, (Work(name, variant, Weights("none")),), METRIC, "k")
        before = tables[1] if champion else None
        scores = Scores(candidate=candidate, table=tables[0], champion=champion, champion_table=before, bundle=bundle)
        return promote(session, work_plan, scores)


TASKS: Any = {"label": "classification"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("serving")
    samples = [Sample("f" * 32, "train.png", "train", {"label": "cow"})]
    for number in range(NUM_SAMPLES):
        file = folder / "data" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((90, 70)).save(file)
        samples.append(Sample(md5_of(file), file.name, "test", {"label": "ant"}))
    version = DataVersion("d1", "r" * 40, tuple(samples), folder / "data", ())
    return Place(folder, Versions(f"sqlite:///{folder / 'mlflow.db'}", folder / "ledger"), version)


@pytest.fixture
def champion(place: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model with a champion."""
    monkeypatch.setattr(dataset, "head_commit", lambda _: "c0ffee")
    monkeypatch.setattr(serving_trials, "MEASURED_SECONDS", 0.5)
    name = str(request.node.name).replace("[", "-").rstrip("]")
    bundle = place.bundle(f"{name}-0")
    assert place.judge(name, bundle, place.rows(bundle), bundles.digest(bundle), loads="off").verdict.promoted
    return name


def alter(bundle: Path) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-1] ^= 64
    (bundle / "weights.safetensors").write_bytes(content)


def exchange(bundle: Path) -> None:
    shutil.copytree(bundle.parents[1] / "other" / "bundle", bundle, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("change", "shift", "words"),
    [
        (alter, 0.0, "weights.safetensors is not what was written"),
        (exchange, 0.0, "it was changed since it was scored"),
        (lambda bundle: None, 0.05, "it answers 'label' of sample"),
    ],
    ids=["altered", "exchanged", "answers"],
)
def test_a_better_model_that_cannot_be_served_is_not_promoted(
    place: Place, champion: str, change: Callable[[Path], None], shift: float, words: str
) -> None:
    place.bundle("other")
    bundle = place.bundle(champion)
    rows = [replace(row, probability=row.probability - shift) for row in place.rows(bundle)]
    digest = bundles.digest(bundle)
    change(bundle)
    promotion = place.judge(champion, bundle, rows, digest, latency="off")
    assert not promotion.verdict.promoted
    (finding,) = [finding for finding in promotion.verdict.findings if not finding.passed and finding.blocks]
    assert finding.guard == "loads"
    assert words in finding.words
    assert finding.words in promotion.verdict.reasons
    assert (promotion.model is None) is (change is alter), "what no consumer can load is no version"
    entry = place.registry.history(champion)[-1]
    assert (entry.version, entry.findings, entry.champion_after) == (
        "" if change is alter else "2",
        promotion.verdict.findings,
        "1",
    )
    assert place.registry.current(champion)["champion"].version == "1"


def test_a_better_model_that_takes_twice_as_long_is_promoted_with_a_warning(
    place: Place, champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the median beside other tests.
    monkeypatch.setattr(serving_trials, "MEASURED_SECONDS", 2.0)
    bundle = place.bundle(champion, image_size_px=384)
    promotion = place.judge(champion, bundle, place.rows(bundle), bundles.digest(bundle))
    findings = {finding.guard: finding for finding in promotion.verdict.findings}
    assert findings["loads"].passed
    slow = findings["latency"]
    assert (slow.passed, slow.blocks) == (False, False)
    assert slow.figures["low"] > slow.figures["most"]
    assert slow.figures["num_bytes"] == sum(file.stat().st_size for file in bundle.iterdir())
    assert slow.figures["num_measured"] >= 10
    assert f"warning: {slow.words}" in promotion.verdict.reasons
    assert "more than 1.5 times" in slow.words
    assert place.registry.current(champion)["champion"].version == "2"


def test_what_could_not_be_timed_is_told_and_is_no_promotion_where_time_blocks(
    place: Place, champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_trials, "TIME", "raise SystemExit('the other bundle is of another format')")
    bundle = place.bundle(champion)
    asked = champion, bundle, place.rows(bundle), bundles.digest(bundle)
    with pytest.raises(HeadstartError, match=r"could not be timed .*: the other bundle is of another format; .*latency: warn"):
        place.judge(*asked, latency="block", loads="off")
    assert place.registry.current(champion)["champion"].version == "1"
    alter(bundle)
    refused = place.judge(*asked, latency="block").verdict
    assert [finding.guard for finding in refused.findings if finding.blocks and not finding.passed] == ["loads"], "that says why"
    alter(bundle)
    promotion = place.judge(*asked, loads="off")
    assert promotion.verdict.promoted
    assert "latency" not in {finding.guard for finding in promotion.verdict.findings}
    assert "The candidate is not judged by its latency: the other bundle is of another format" in place.said


def test_a_consumers_process_has_the_consumers_packages_alone() -> None:
    found = "from importlib.util import find_spec\nfound = [n for n in [*asked['absent'], 'heads'] if find_spec(n)]\n"
    with pytest.raises(clean_process.ProcessFailed, match=r"found: \['heads'\]"):
        clean_process.run(f"{found}raise SystemExit(f'found: {{found}}')", [])


def case(new: tuple[float, ...], old: tuple[float, ...] | None, severity: str = "warn") -> gate.Case:
    def table(digest: str, num_wrong: int) -> ScoreTable:
        rows = tuple(Scored(f"{i:032}", "label", "a", "b" if i < num_wrong else "a", 0.9) for i in range(200))
        return ScoreTable(digest, "d1", rows, {METRIC: 1 - num_wrong / 200}, TASKS)

    guards: Any = {"latency": severity, "loads": "block"}
    trials = Trials((Serving(new, 9_000_000), Serving(old, 5_000_000) if old else None), "")
    return gate.Case(
        table("new", 5),
        table("old", 40) if old else None,
        gate.Policy(METRIC, guards=guards),
        majority={"label": "b"},
        trials=trials,
    )


def test_noise_is_no_delay_and_a_delay_blocks_if_the_plan_says_so() -> None:
    random = np.random.default_rng(0)
    old = tuple((0.01 * random.lognormal(0, 0.3, 100)).tolist())
    found = {
        factor: latency(case(tuple(factor * second for second in reversed(old)), old)) for factor in (0.5, 1.0, 1.45, 1.6, 2.0)
    }
    assert {factor: finding is not None and finding.passed for factor, finding in found.items()} == {
        0.5: True,
        1.0: True,
        1.45: True,
        1.6: True,
        2.0: False,
    }
    slow = case(tuple(2 * second for second in old), old, "block")
    verdict = gate.decide(slow)
    assert not verdict.promoted
    assert verdict.reasons[-2].startswith("a sample takes 2")
    assert "; 2.00 times as long (2.00 to 2.00) in the median of paired calls, more than" in verdict.reasons[-2]
    assert "9.0 MB against 5.0 MB" in verdict.reasons[-2]
    assert gate.decide(replace(slow, policy=replace(slow.policy, max_slowdown=2.0))).promoted
    assert gate.decide(case(old, old, "block")).promoted
    for tried in (slow, case(old, old, "block")):
        untried = gate.decide(replace(tried, trials=Trials()))
        assert gate.decide_by_trials(untried, tried, tried.trials) == gate.decide(tried), "the same words, figures and level"
    assert latency(case(old, None)) is None
    assert gate.decide(replace(slow, trials=Trials())).promoted, "what was not measured is not judged"


def test_the_interval_of_the_median_is_scipys() -> None:
    for num in (6, 10, 25, 100, 333):
        ratios = np.random.default_rng(num).lognormal(0, 0.4, num)
        theirs = quantile_test(ratios, q=0, p=0.5).confidence_interval(0.95)
        assert median_ratio(ratios) == (np.median(ratios), theirs.low, theirs.high)
    assert median_ratio(np.asarray([3.0, 1.0, 2.0])) == (2.0, 1.0, 3.0)
