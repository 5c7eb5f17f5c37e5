"""The guard of robustness: figures against scipy's, what masked gradients look like, and the trial that measures both models."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from flows import job
from flows.gate import Case, Policy, Trials, decide
from flows.gate.guards.robustness import robustness
from flows.gate.trials import Robustness
from flows.job.holdout import robustness as job_room
from flows.job.job import read_job
from flows.model_version import ModelVersion
from flows.plan import Plan
from flows.records import DataVersion, Sample, ScoreTable, TrainedVariant, Weights, Work
from flows.stages.trials import robustness as stage_room
from flows.stages.trials.robustness import measure_robustness
from flows.stages.values import Scores, WorkPlan
from heads import bundle as bundles
from heads.data.image_transforms import preprocess_for
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored

METRIC, NUM = "label/accuracy", 120
ATTACKS = ("fgsm 1/255", "fgsm 4/255", "pgd 1/255", "pgd 4/255")
CORRUPTIONS = ("jpeg 1", "jpeg 2", "contrast 1")


def readings(seed: int, corrupted: float = 0.7, attacked: float = 0.4, **changes: float) -> Robustness:
    random = np.random.default_rng(seed)
    chances = {"clean": 0.9, "pgd unbounded": 0.0} | dict.fromkeys(CORRUPTIONS, corrupted) | dict.fromkeys(ATTACKS, attacked)
    chances |= {name.replace("_", " "): chance for name, chance in changes.items()}
    counts = dict.fromkeys(ATTACKS, 50) | {"pgd unbounded": 20}
    right = {name: (random.random(counts.get(name, NUM)) < chance).astype(float).tolist() for name, chance in chances.items()}
    # The attacks differ by their strength alone, so that none is behind by luck.
    right |= dict.fromkeys(ATTACKS, right["fgsm 1/255"]) if not changes else {}
    return Robustness(right, {"start": [0.4] * 50, "end": [1.9] * 50})


def scored(bundle: str, num_wrong: int) -> ScoreTable:
    rows = tuple(Scored(f"d{i}", "label", "a", "b" if i < num_wrong else "a", 0.9) for i in range(NUM))
    return ScoreTable(bundle, "v", rows, {METRIC: 1 - num_wrong / NUM}, {"label": "classification"})


def case(new: Robustness, old: Robustness | None, severity: Any = "warn") -> Case:
    policy, champion = Policy(METRIC, guards={"robustness": severity}), None if old is None else scored("old", 40)
    majority = {"label": "b"}
    return Case(scored("new", 2), champion, policy, majority, champion_name="champion 3", trials=Trials(robustness=(new, old)))


def test_both_kinds_are_compared_by_a_paired_interval() -> None:
    new, old = readings(1, 0.62, 0.5), readings(2, 0.8, 0.3)
    finding = robustness(case(new, old))
    assert finding is not None
    for kind, names in (("corrupted", CORRUPTIONS), ("attacked", ATTACKS)):
        means = [np.mean([model.right[name] for name in names], axis=0) for model in (new, old)]
        reference = ttest_rel(*means).confidence_interval(0.95)
        assert finding.figures[kind] == pytest.approx(means[0].mean())
        assert finding.figures[f"{kind}_gain"] == pytest.approx(means[0].mean() - means[1].mean())
        assert finding.figures[f"{kind}_gain_low"] == pytest.approx(reference.low)
        assert finding.figures[f"{kind}_gain_high"] == pytest.approx(reference.high)
    assert not finding.passed, "corrupted images are read worse, beyond the interval"
    assert "against" in finding.words
    assert "of champion 3" in finding.words
    assert finding.figures["jpeg_1"] == pytest.approx(np.mean(new.right["jpeg 1"]))
    equal = robustness(case(new, new))
    assert equal is not None
    assert equal.passed


def test_the_plan_says_whether_it_blocks_and_a_first_model_only_has_its_figures() -> None:
    new, old = readings(1, 0.6), readings(2, 0.85)
    promoted = {severity: decide(case(new, old, severity)).promoted for severity in ("block", "warn", "off")}
    assert promoted == {"block": False, "warn": True, "off": True}
    first = decide(case(new, None, "block"))
    assert first.promoted
    assert "gain" not in " ".join(first.findings[-1].figures)
    assert first.findings[-1].words.startswith("read rightly: 0.6")
    assert decide(replace(case(new, old, "block"), trials=Trials())).promoted, "what was not measured says nothing"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (readings(1, pgd_unbounded=0.5), "PGD without a bound leaves 0.* at most 0.05"),
        (readings(1, **{"pgd_4/255": 0.9}), "PGD leaves 0.* more than FGSM"),
        (replace(readings(1), losses={"start": [0.4] * 9, "end": [0.4] * 9}), r"loss does not grow \(0.4000 to 0.4000\)"),
    ],
)
def test_gradients_that_mislead_attacks_are_told_and_do_not_pass(new: Robustness, words: str) -> None:
    finding = robustness(case(new, None))
    assert finding is not None
    assert not finding.passed
    assert finding.figures["gradients_masked"] == 1
    with pytest.raises(AssertionError, match=words.replace(" at most", r" \(at most")):
        raise AssertionError(finding.words)
    champion = robustness(case(readings(1), new))
    assert champion is not None
    assert champion.passed
    assert champion.notes[0].startswith("the gradients of champion 3 are masked: ")


def write_bundle(folder: Path, seed: int) -> Path:
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), fit=Fit(image_size_px=32, seed=seed))
    classes, model = {"label": ("a", "b")}, build_model(variant, {"label": ("a", "b")}, None)
    return bundles.save(
        folder, model=model, variant=variant, classes=classes, preprocess=preprocess_for("squeezenet1_1", 32), facts={}
    )


def test_the_trial_reads_the_same_samples_by_both_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_room, "MAX_SAMPLES", 6)
    monkeypatch.setattr(job_room, "MAX_ATTACKED", 4)
    monkeypatch.setattr(job_room, "MAX_UNBOUNDED", 2)
    monkeypatch.setattr(stage_room, "SAY_EVERY_SECONDS", 0.01)
    random, samples = np.random.default_rng(0), []
    for number in range(9):
        file = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        split = "train" if number == 0 else "test"
        samples.append(Sample(hashlib.md5(file.read_bytes()).hexdigest(), file.name, split, {"label": "ab"[number % 2]}))
    version = DataVersion("d" * 32, "r" * 40, tuple(samples), tmp_path, ())
    new, old = write_bundle(tmp_path / "work" / "w1" / "bundle", 0), write_bundle(tmp_path / "pulled" / "m-3", 1)
    work = Work("w1", bundles.load(new).variant, Weights("none"))
    plan, said, jobs = Plan.model_validate({"name": "m"}), list[str](), list[job.Job]()

    def run_job(asked: job.Job) -> job.JobOutcome:
        jobs.append(asked)
        return job_room.measure(read_job(job.write_job(asked)))

    session: Any = SimpleNamespace(
        plan=plan, settings=SimpleNamespace(root=tmp_path, features=None), say=said.append, run_job=run_job
    )
    candidate = TrainedVariant("w1", work.variant, False, {}, 1, 1, 1, 1.0)
    champion = ModelVersion("m", "3", ("champion",), {}, 0.0)
    scores = Scores(candidate=candidate, table=scored("new", 0), champion=champion, champion_table=scored("old", 0), bundle=new)
    found = measure_robustness(session, WorkPlan(plan, version, (work,), METRIC, "k"), scores).robustness
    assert found is not None
    assert found[1] is not None
    for readings in found:
        assert readings is not None
        assert (len(readings.right["clean"]), len(readings.right["pgd 4/255"]), len(readings.right["pgd unbounded"])) == (6, 4, 2)
        assert len(readings.right) == 1 + 24 + 4 + 1
    assert [picture.digest for picture in job_room.choose(jobs[0])] == sorted(
        (s.digest for s in samples[1:]), key=lambda digest: hashlib.sha256(f"robustness {digest}".encode()).digest()
    )[:6]
    assert {sample.split for sample in jobs[0].version.samples} == {"test"}
    assert [line for line in said if "of 12 images are read, corrupted and attacked" in line]
    # The champion's readings are kept: another candidate's night reads only its own; and a rerun reads nothing.
    later = replace(scores, candidate=replace(candidate, key="w2"), bundle=write_bundle(tmp_path / "work" / "w2" / "bundle", 2))
    again = measure_robustness(session, WorkPlan(plan, version, (work,), METRIC, "k"), later).robustness
    assert [len(asked.bundles) for asked in jobs] == [2, 1]
    assert again is not None
    assert again[1] == found[1]
    assert job.robustness_file(tmp_path, bundles.digest(old), version.digest, "label").exists()
    masks = replace(scores, table=replace(scores.table, tasks={"label": "segmentation"}))
    assert measure_robustness(session, WorkPlan(plan, version, (work,), METRIC, "k"), masks) == Trials()
    assert said[-1].startswith("Robustness is not measured: 'label' is a target of masks")
