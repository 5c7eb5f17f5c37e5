"""The baseline of a plan: a probe that a training fits on stored features, else a constant answer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score, log_loss

from flows import job
from flows.baselines import Baseline, BaselineFolder, probe_of
from flows.job.datasets import Splits
from flows.job.training import baseline as of_job
from flows.job.training.baseline import fit_baseline
from flows.job.trunks import JobFeatures
from flows.plan import parse_plan
from flows.records import DataVersion, Mask, Sample, Weights, Work, Workers
from flows.settings import Settings
from flows.stages.baseline import baseline_work, find_baselines
from flows.stages.planning import make_work_plan
from flows.stages.values import WorkPlan
from heads import bundle
from heads.spec import Fit, Head, Variant

SHARED = Path(__file__).parents[2].parent / "shared"
PHOTOS, SQUEEZENET = SHARED / "data" / "hymenoptera", SHARED / "weights" / "squeezenet1_1_from_fp16-aec6cba8.pth"
CLASSES = {"kind": ("disc", "square"), "tags": ("dark", "red"), "mask": ("0", "7")}
NUM_TRAIN, NUM_VAL = 24, 10


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Pictures of discs and squares, with tags and masks; some labels are missing, and the files of test are not there."""
    folder, samples, masks = tmp_path_factory.mktemp("pictures"), list[Sample](), dict[str, Mask]()
    (folder / "masks").mkdir()
    rows, columns = np.mgrid[-1:1:40j, -1:1:40j]
    for number in range(NUM_TRAIN + NUM_VAL):
        shape = np.hypot(rows, columns) < 0.7 if number % 2 else np.maximum(abs(rows), abs(columns)) < 0.5
        pixels = shape[..., None] * np.array([200, 60, 60] if number % 3 else [90, 90, 90]) + 20 * (number % 5)
        file = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        labels = {
            "kind": None if number % 9 == 4 else ("square", "disc")[number % 2],
            "tags": None if number % 8 == 3 else "|".join(["red"] * bool(number % 3) + ["dark"] * (number % 5 < 2)),
            "mask": f"masks/{number}.png",
        }
        values = np.where(shape, 7, 0).astype(np.uint8)
        values[0, :9] = 255
        drawn = folder / f"masks/{number}.png"
        Image.fromarray(values).save(drawn)
        counts = {int(value): int(count) for value, count in zip(*np.unique(values, return_counts=True), strict=True)}
        masks[f"masks/{number}.png"] = Mask(hashlib.md5(drawn.read_bytes()).hexdigest(), counts)
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        samples.append(Sample(digest, file.name, "train" if number < NUM_TRAIN else "val", labels))
    samples.append(Sample("f" * 32, "gone.png", "test", {"kind": "disc", "tags": "red", "mask": "masks/0.png"}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, (), masks)


def work_plan_of(version: DataVersion, column: str, **changes: Any) -> WorkPlan:
    """A plan of one target on a frozen squeezenet of a person's own weights, as it is until `changes`."""
    weights = SQUEEZENET if SQUEEZENET.is_file() else pytest.skip("the weights are not here")
    heads = {"mask": ["fcn"]}.get(column, ["mlp"])
    target = {"column": column, **({"ignore": [255]} if column == "mask" else {})}
    asked = {"name": "x", "targets": [target], "backbones": ["squeezenet1_1"], "weights": str(weights), "heads": heads}
    return make_work_plan(parse_plan(asked | {"freeze": ["all"], "fit": {"image_size_px": 32}} | changes), version)


def asked_of(storage: Path, version: DataVersion, target: str, *heads: Head, freeze: str = "all", views: int = 1) -> job.Job:
    """A training of one variant of random weights, and of a probe of one target on its trunk."""
    variant = Variant(backbone="squeezenet1_1", heads=heads, freeze=freeze, fit=Fit(image_size_px=32, epochs=3, views=views))
    work = Work("work", variant, Weights("none"))
    plain = replace(work, key="probe", variant=variant.model_copy(update={"fit": variant.fit.model_copy(update={"views": 1})}))
    return job.Job("train", "k", "x", storage, version, CLASSES, Workers(), works=(work,), baseline=plain, target=target)


def fit(asked: job.Job) -> Baseline | str | None:
    """What the fit of a job's probe leaves on disk, on features that its work alone asks for."""
    assert asked.baseline
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    features.fill(asked.works)
    before = [(status.trunk, status.num_samples, status.num_bytes) for status in features.store.status()]
    fit_baseline(features, asked.baseline)
    assert [(status.trunk, status.num_samples, status.num_bytes) for status in features.store.status()] == before
    return BaselineFolder.of(asked.storage, asked.baseline.key).read()


HEADS = {
    "an attention head, which stores maps": (Head(target="kind", design="attention"),),
    "labels": (Head(target="tags", task="multilabel", design="mlp"),),
    "masks besides, which see images whole": (
        Head(target="kind", design="cosine"),
        Head(target="mask", task="segmentation", design="fcn", ignore=(255,)),
    ),
}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_a_probe_reads_what_its_work_stores_and_its_bundle_answers_as_it_was_measured(
    tmp_path: Path, version: DataVersion, heads: tuple[Head, ...]
) -> None:
    first = heads[0]
    asked = asked_of(tmp_path, version, first.target, *heads, freeze="lp_ft", views=2)
    found = fit(asked)
    assert isinstance(found, Baseline)
    assert (found.kind, found.label, found.note) == ("probe", "logistic probe on squeezenet1_1", "")
    assert found.bundle
    assert found.num_parameters == (512 + 1) * 2
    truths = {s.file: cell for s in version.samples if s.split == "val" and (cell := s.labels[first.target]) is not None}
    answers = bundle.load(asked.fetch_bundle(found.bundle)).predict([version.data / file for file in truths])
    told = [dict(answer[first.target].probabilities) for answer in answers]
    if first.task == "classification":
        right = accuracy_score(list(truths.values()), [max(one, key=one.__getitem__) for one in told])
        assert found.metrics[f"val/{first.target}/accuracy"] == pytest.approx(right)
    else:
        table = [[name in cell.split("|") for name in CLASSES["tags"]] for cell in truths.values()]
        average = average_precision_score(table, [[one[name] for name in CLASSES["tags"]] for one in told], average="macro")
        assert found.metrics["val/tags/average_precision"] == pytest.approx(average, abs=1e-6)


def test_a_fit_that_is_killed_leaves_nothing_that_counts_and_the_next_one_ends_alike(
    tmp_path: Path, version: DataVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for a kill once the bundle is there."""

    def die(self: BaselineFolder, _: Baseline) -> None:
        raise Killed

    head = Head(target="kind", design="linear")
    whole, half = (asked_of(tmp_path / name, version, "kind", head) for name in ("whole", "half"))
    expected = fit(whole)
    with monkeypatch.context() as patched:
        patched.setattr(BaselineFolder, "write", die)
        with pytest.raises(Killed):
            fit(half)
    folder = BaselineFolder.of(half.storage, "probe")
    assert (folder.is_finished(), folder.read()) == (False, None)
    again = fit(half)
    assert isinstance(expected, Baseline)
    assert isinstance(again, Baseline)
    assert replace(again, seconds=0, bundle=None) == replace(expected, seconds=0, bundle=None)
    one, other = (
        BaselineFolder.of(asked.storage, "probe").place.path / "bundle" / "weights.safetensors" for asked in (whole, half)
    )
    assert one.read_bytes() == other.read_bytes()


def test_of_very_many_samples_those_of_the_smallest_digests_are_taken(
    tmp_path: Path, version: DataVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_job, "MAX_SAMPLES", 10)
    labels = torch.tensor([0, -1, 1] * 8)
    digests = [hashlib.md5(b"%d" % n).hexdigest() for n in range(24)]
    chosen = of_job.choose(digests, labels).tolist()
    labelled = [n for n in range(24) if n % 3 != 1]
    assert chosen == sorted(sorted(labelled, key=lambda n: digests[n])[:10])
    found = fit(asked_of(tmp_path, version, "kind", Head(target="kind")))
    assert isinstance(found, Baseline)
    assert (found.num_samples, found.note) == (10, "fitted on 10 of 21 labelled training samples")


def test_where_no_probe_can_be_fitted_the_reason_is_kept(tmp_path: Path, version: DataVersion) -> None:
    unlabelled = tuple(replace(s, labels={**s.labels, "kind": None}) if s.split == "train" else s for s in version.samples)
    asked = asked_of(tmp_path, replace(version, samples=unlabelled), "kind", Head(target="kind"))
    assert fit(asked) == "no training sample has a label of 'kind', so that there is nothing to fit a probe on"
    assert BaselineFolder.of(tmp_path, "probe").is_finished()


@pytest.mark.skipif(not (PHOTOS.is_dir() and SQUEEZENET.is_file()), reason="the photographs are not here")
def test_a_probe_of_photographs_is_scikit_learns_regression_on_the_stored_features(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from heads.features import Key
    from heads.training.probe import PENALTIES

    samples = tuple(
        Sample(
            hashlib.md5(file.read_bytes()).hexdigest(),
            str(file.relative_to(PHOTOS)),
            ("train", "train", "val")[number % 3],
            {"label": file.parent.name},
        )
        for number, file in enumerate(sorted(PHOTOS.rglob("*.jpg"))[::4])
    )
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label", design="mlp"),), fit=Fit(image_size_px=64))
    work = Work("probe", variant, Weights("squeezenet", SQUEEZENET))
    version, classes = DataVersion("d" * 32, "r" * 40, samples, PHOTOS, ()), {"label": ("ants", "bees")}
    asked = job.Job("train", "k", "x", tmp_path, version, classes, Workers(), works=(work,), baseline=work, target="label")
    found = fit(asked)
    assert isinstance(found, Baseline)
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    (trunk,) = features.store.trunks()
    (tap,) = features.store.status()[0].taps
    rows, names = {}, {}
    for split in ("train", "val"):
        own = [s for s in samples if s.split == split]
        stored = features.store.trunk(trunk).open([Key(s.digest) for s in own], [tap])[torch.arange(len(own))][tap]
        normed = torch.nn.functional.layer_norm(stored.flatten(1), (512,)).double()
        rows[split] = torch.nn.functional.pad(normed, (0, 1), value=1.0).numpy()
        names[split] = [s.labels["label"] for s in own]
    accuracies, losses = [], []
    for penalty in PENALTIES:
        strength = 2 / (penalty * len(rows["train"]))
        model = LogisticRegression(C=strength, fit_intercept=False, tol=1e-9, max_iter=20000).fit(rows["train"], names["train"])
        told = model.predict_proba(rows["val"])
        accuracies.append(accuracy_score(names["val"], model.classes_[told.argmax(axis=1)]))
        losses.append(log_loss(names["val"], told, labels=model.classes_))
    best = max(range(len(PENALTIES)), key=lambda n: (accuracies[n], -losses[n]))
    assert found.penalty == PENALTIES[best]
    assert found.metrics["val/label/accuracy"] == pytest.approx(accuracies[best])
    assert found.metrics["val/label/loss"] == pytest.approx(losses[best], rel=1e-3)
    assert accuracies[best] > 0.75


def test_the_key_of_a_probe_is_that_of_its_trunk_its_labels_and_nothing_else(version: DataVersion) -> None:
    def key(of: DataVersion = version, **changes: Any) -> str:
        work = baseline_work(work_plan_of(of, "kind", **changes))
        assert work
        return work.key

    first = key()
    same: tuple[dict[str, Any], ...] = (
        {"heads": ["linear", "attention"]},
        {"freeze": ["lp_ft"]},
        {"freeze": ["none", "all"]},
        {"fit": {"image_size_px": 32, "learning_rate": [0.1, 0.01], "augment": "strong", "views": 3, "seed": 7}},
    )
    assert {key(**changes) for changes in same} == {first}
    assert key(fit={"image_size_px": 48}) != first
    tested = replace(version.samples[-1], digest="e" * 32)
    assert key(replace(version, digest="e" * 32, samples=(*version.samples, tested))) == first, "the holdout has no part in it"
    grown = replace(version.samples[0], digest="e" * 32)
    assert key(replace(version, samples=(*version.samples, grown))) != first
    relabelled = replace(version.samples[0], labels={**version.samples[0].labels, "kind": "disc"})
    assert key(replace(version, samples=(relabelled, *version.samples[1:]))) != first


def test_random_weights_make_another_trunk_with_each_seed() -> None:
    head = Head(target="kind", design="mlp")
    one, two = (Variant(backbone="resnet18", heads=(head,), fit=Fit(seed=seed, learning_rate=0.1 + seed)) for seed in (0, 1))
    assert probe_of(one, "kind", is_random=False) == probe_of(two, "kind", is_random=False)
    assert probe_of(one, "kind", is_random=True) != probe_of(two, "kind", is_random=True)


@pytest.mark.parametrize(
    ("column", "changes", "note"),
    [
        ("mask", {}, "masks have no probe"),
        ("kind", {"freeze": ["none"]}, "no variant stores the features of a frozen backbone, which a probe could read"),
        ("kind", {"freeze": ["upto:stage1"]}, "no variant stores the features of a frozen backbone, which a probe could read"),
        ("kind", {}, "a logistic probe on squeezenet1_1 is fitted by the next training"),
    ],
)
def test_without_a_probe_the_baseline_is_a_constant_answer_and_says_why(
    tmp_path: Path, version: DataVersion, column: str, changes: dict[str, Any], note: str
) -> None:
    found = find_baselines(Settings(workspace=tmp_path), work_plan_of(version, column, **changes))[0]
    assert (found.kind, found.label, found.note, found.bundle) == ("majority", "majority", note, None)


def test_a_fitted_probe_is_found_and_one_that_could_not_be_fitted_says_why(tmp_path: Path, version: DataVersion) -> None:
    settings, work_plan = Settings(workspace=tmp_path), work_plan_of(version, "kind")
    work = baseline_work(work_plan)
    assert work
    folder = BaselineFolder.of(settings.storage, work.key)
    folder.write_failure("features are not finite")
    assert find_baselines(settings, work_plan)[0].note == "features are not finite"
    folder.write(Baseline(kind="probe", label="logistic probe on x", metrics={"val/kind/accuracy": 0.75}, penalty=0.1))
    found = find_baselines(settings, work_plan)[0]
    assert (found.kind, found.metrics, found.bundle) == ("probe", {"val/kind/accuracy": 0.75}, f"baselines/{work.key}/bundle")


def test_measures_of_a_constant_answer_are_scikit_learns(tmp_path: Path, version: DataVersion) -> None:
    settings = Settings(workspace=tmp_path)
    by_split = {split: [s.labels for s in version.samples if s.split == split] for split in ("train", "val")}
    kinds = {split: [cell for row in rows if (cell := row["kind"])] for split, rows in by_split.items()}
    usual, num = max(CLASSES["kind"], key=kinds["train"].count), len(kinds["train"])
    shares = [(kinds["train"].count(name) + 1) / (num + 2) for name in CLASSES["kind"]]
    found = find_baselines(settings, work_plan_of(version, "kind"))[0].metrics
    told, num_val = [usual] * len(kinds["val"]), len(kinds["val"])
    assert found["val/kind/accuracy"] == pytest.approx(accuracy_score(kinds["val"], told))
    assert found["val/kind/f1_macro"] == pytest.approx(f1_score(kinds["val"], told, average="macro", zero_division=0))
    assert found["val/kind/loss"] == pytest.approx(log_loss(kinds["val"], [shares] * num_val, labels=CLASSES["kind"]), rel=1e-5)
    assert found["val/kind/auroc"] == pytest.approx(0.5)

    tags = [[name in cell.split("|") for name in CLASSES["tags"]] for row in by_split["val"] if (cell := row["tags"]) is not None]
    found = find_baselines(settings, work_plan_of(version, "tags"))[0].metrics
    average = average_precision_score(tags, np.full((len(tags), 2), 0.5), average="macro")
    assert found["val/tags/average_precision"] == pytest.approx(average)

    pixels = [version.masks[str(row["mask"])].pixels for row in by_split["val"]]
    truths = [value for counts in pixels for value, count in counts.items() if value != 255 for _ in range(count)]
    found = find_baselines(settings, work_plan_of(version, "mask"))[0].metrics
    assert found["val/mask/miou"] == pytest.approx(jaccard_score(truths, [0] * len(truths), average="macro"))
    assert found["val/mask/pixel_accuracy"] == pytest.approx(truths.count(0) / len(truths))
