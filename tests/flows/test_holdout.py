"""The sealed holdout: a leak is planted wherever a split is chosen, and does not get in or is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows import job
from flows.errors import AskedWrongly
from flows.job.datasets import Splits
from flows.job.holdout import scoring
from flows.job.job import read_job
from flows.job.training import results, together
from flows.job.trunks import JobFeatures
from flows.landing import ingest
from flows.manifest import parse
from flows.plan import Plan, check_data, class_names, majority_classes, targets_of
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.work_folder import bundle_name, read_trained
from heads import bundle
from heads.features import FeatureStore
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from heads.training import loop

CLASSES = {"label": ("a", "b"), "marks": ("x", "y")}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Twelve train, six val and six test images; those of test are no files and have labels that no head knows."""
    folder, random, samples = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(18):
        file = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        labels = {"label": "ab"[number % 2], "marks": ("x", "x|y", "y")[number % 3]}
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        samples.append(Sample(digest, file.name, "train" if number < 12 else "val", labels))
    poison = {"label": "poison", "marks": "poison|x"}
    samples += [Sample(hashlib.md5(b"%d" % n).hexdigest(), f"gone-{n}.png", "test", poison) for n in range(6)]
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def training(storage: Path, version: DataVersion) -> job.Job:
    heads = (Head(target="label"), Head(target="marks", task="multilabel"))
    fit = Fit(epochs=3, batch_size=6, image_size_px=32, learning_rate=0.01, augment="none", patience=1, class_weights="balanced")
    works = [
        Work(freeze, Variant(backbone="squeezenet1_1", heads=heads, freeze=freeze, fit=fit), Weights("none"))
        for freeze in ("all", "none")
    ]
    return job.Job("train", "k", "tiny", storage, version, CLASSES, Workers(count=1), works=tuple(works))


def train(asked: job.Job) -> dict[str, bytes]:
    """Train a work on stored features and one on images; every file of both results, but for the seconds."""
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    features.fill(asked.works)
    probe, whole = asked.works
    together.train_probes(features, [probe])
    sets = [features.splits.open(split, whole.variant) for split in ("train", "val")]
    model = build_model(whole.variant, asked.classes, None)
    outcome = loop.train(model, whole.variant, *sets, device=torch.device("cpu"), on_epoch=lambda *_: None)
    results.write_result(asked, whole, model, outcome)
    found = {}
    for work in asked.works:
        folder = asked.work_folder(work)
        found |= {f"{work.key}/{file.name}": file.read_bytes() for file in (folder.fetch_bundle() or Path()).iterdir()}
        metrics = json.loads((folder.place.path / "result.json").read_text())["metrics"]
        found[f"{work.key}/metrics"] = json.dumps(metrics, sort_keys=True).encode()
    return found


def test_a_training_gives_the_same_bytes_whatever_the_holdout_is(tmp_path: Path, version: DataVersion) -> None:
    """Weights, early stops, thresholds, temperatures, measures, class names and class weights do not depend on the holdout."""
    sealed, without = training(tmp_path / "sealed", version), training(tmp_path / "without", version.only(("train", "val")))
    found, expected = train(sealed), train(without)
    assert found == expected
    tuned = json.loads(found["all/variant.json"])
    assert tuned["thresholds"]["marks"], "thresholds were tuned"
    assert tuned["temperatures"].keys() == {"label", "marks"}, "temperatures were fitted"
    (trunk,) = FeatureStore(sealed.features_root).status()
    assert trunk.num_samples == 18, "the store holds the samples of train and val alone"


def test_a_training_holds_no_test_sample_whatever_it_is_given(tmp_path: Path, version: DataVersion) -> None:
    asked = training(tmp_path, version)
    assert {sample.split for sample in asked.version.samples} == {"train", "val"}
    assert {row[2] for row in json.loads((job.write_job(asked).place.path / "samples.json").read_text())["samples"]} == {
        "train",
        "val",
    }
    scoring = replace(asked, kind="score", version=version)
    assert {sample.split for sample in scoring.version.samples} == {"test"}
    fresh = replace(asked, kind="fresh", version=version.part(version.samples[-9:]))
    assert len(read_job(job.write_job(fresh)).version.samples) == 9, "new samples of any split"
    assert fresh.version.digest.startswith(f"{version.digest}-")


@pytest.mark.parametrize("asks", [Splits.open, Splits.read, lambda splits, split, _: splits.digests(split)])
def test_a_training_that_asks_for_the_holdout_is_refused(tmp_path: Path, version: DataVersion, asks: object) -> None:
    asked = training(tmp_path, version)
    with pytest.raises(ValueError, match="a job of the kind train asked for the split 'test'; allowed: train, val"):
        asks(Splits(asked), "test", asked.works[0].variant)  # type: ignore[operator]


def test_a_test_sample_written_into_a_jobs_file_is_refused(tmp_path: Path, version: DataVersion) -> None:
    folder = job.write_job(training(tmp_path, version))
    tables = json.loads((folder.place.path / "samples.json").read_text())
    tables["samples"].append(["0" * 32, "images/leak.png", "test", {"label": "a", "marks": "x"}, None, 1])
    (folder.place.path / "samples.json").write_text(json.dumps(tables))
    with pytest.raises(AskedWrongly, match=r"1 sample of the split 'test' in a job of the kind train, e.g. images/leak.png"):
        read_job(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_holdout_image_that_is_also_trained_or_ranked_on_is_refused(version: DataVersion, split: str) -> None:
    held_out = replace(version.samples[-1], labels={"label": "a", "marks": "x"})
    leak = replace(held_out, file="copy.png", split=split)
    samples = (*(s for s in version.samples if s.split != "test"), held_out, leak)
    with pytest.raises(AskedWrongly, match=rf"1 image of the splits .* e.g. copy.png \({split}\) and gone-5.png \(test\)"):
        check_data(Plan(name="x", backbones=["squeezenet1_1"], targets=["label"]), replace(version, samples=samples))


def test_ranking_by_a_measure_of_the_holdout_is_refused(tmp_path: Path, version: DataVersion) -> None:
    asked = training(tmp_path, version)
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    features.fill(asked.works[:1])
    together.train_probes(features, asked.works[:1])
    file = Path(asked.work_folder(asked.works[0]).place.address) / "result.json"
    assert read_trained(tmp_path, asked.works[0], reused=True)
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"metrics": result["metrics"] | {"test/label/accuracy": 1.0}}))
    with pytest.raises(AskedWrongly, match=r"measures of the holdout \(test/label/accuracy\).*only those of train/ and val/"):
        read_trained(tmp_path, asked.works[0], reused=True)


def test_new_samples_of_any_split_are_scored_apart_from_the_holdout(tmp_path: Path, version: DataVersion) -> None:
    asked = training(tmp_path, version)
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    features.fill(asked.works[:1])
    together.train_probes(features, asked.works[:1])
    name = bundle_name(asked.works[0].key)
    part = version.part(version.samples[8:16])
    fresh = replace(asked, kind="fresh", version=part, works=(), bundles=(name,))
    assert (scoring.score(fresh).scores or {}).keys() == {name}
    table = job.read_scores(job.scores_file(tmp_path, bundle.digest(asked.fetch_bundle(name)), part.digest))
    assert table.data_version == part.digest
    wanted = {(s.digest, target, cell) for s in part.samples for target, cell in s.labels.items()}
    assert {(row.digest, row.target, row.truth) for row in table.rows} == wanted
    for row in table.rows:
        assert row.probabilities.keys() == set(CLASSES[row.target]), "for classes the likeliest are kept"
    assert not job.scores_file(tmp_path, table.bundle_digest, version.digest).exists()
    assert part.digest != version.part(version.samples[8:15]).digest
    relabelled = [replace(version.samples[8], labels={"label": "b", "marks": "x"}), *version.samples[9:16]]
    assert part.digest != version.part(relabelled).digest


def test_class_names_and_majorities_are_those_of_train(version: DataVersion) -> None:
    plan = Plan(name="x", backbones=["squeezenet1_1"], targets=["label", "marks"])
    many = [replace(version.samples[-1], digest=f"{n:032}", labels={"label": "b", "marks": "y"}) for n in range(50)]
    grown = replace(version, samples=(*version.samples, *many))
    assert [class_names(target, grown) for target in targets_of(plan, grown)] == [("a", "b"), ("x", "y")]
    assert majority_classes(grown) == majority_classes(version.only(["train"])) == {"label": "a", "marks": "x"}


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)


def splits(data: Path) -> Mapping[str, str]:
    return {sample.file.removeprefix("images/"): sample.split for sample in parse((data / "manifest.csv").read_text())}


def test_a_source_with_an_image_in_train_and_test_has_it_in_test_and_is_told(tmp_path: Path) -> None:
    source, data = tmp_path / "source", tmp_path / "workspace" / "data"
    for number in range(24):
        picture(source / ("train", "val", "test")[number % 3] / "ab"[number % 2] / f"{number}.png", number)
    picture(source / "train" / "a" / "copy.png", 2)
    report = ingest(source, data)
    assert splits(data)["train/a/copy.png"] == splits(data)["test/a/2.png"] == "test"
    assert any("1 sample is not in the split that the source gives them" in warning for warning in report.warnings)
    # What was trained on is held out from now on: the champion of before has seen it.
    shutil.move(source / "train" / "a" / "0.png", source / "test" / "a" / "0.png")
    assert splits(data)["train/a/0.png"] == "train"
    report = ingest(source, data)
    assert splits(data)["train/a/0.png"] == splits(data)["test/a/0.png"] == "test"
    assert [w for w in report.warnings if w.startswith("1 sample was in train and is in test from now on: a champion that was")]
    assert not [warning for warning in ingest(source, data).warnings if "from now on" in warning]
    # A manifest that another hand leaked into is mended by the next ingest, whichever of the two comes last.
    for leaked in ("train/a/copy.png", "test/a/2.png"):
        lines = (data / "manifest.csv").read_text().splitlines(keepends=True)
        text = "".join(line.replace(",test,", ",train,") if f"images/{leaked}" in line else line for line in lines)
        (data / "manifest.csv").write_text(text)
        assert splits(data)[leaked] == "train"
        ingest(source / "val", data)
        assert splits(data)["train/a/copy.png"] == splits(data)["test/a/2.png"] == "test"
