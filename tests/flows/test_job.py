"""The program on the cluster: one undisturbed training, and one whose worker and driver are killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from flows import cluster, job
from flows.baselines import BASELINE, Baseline, BaselineFolder
from flows.cluster import processes
from flows.errors import AskedWrongly
from flows.job.holdout.scoring import MIN_SHARD_SAMPLES
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.work_folder import bundle_name, read_trained
from flows.work_records import EpochRecord, WorkResult
from heads import bundle
from heads.spec import Fit, Head, Variant

CLASSES = {"label": ("green", "red")}
EPOCHS = 8


@dataclass(frozen=True)
class Place:
    """A cluster, and how to know its processes."""

    cluster: cluster.Cluster
    mark: str


@dataclass(frozen=True)
class Run:
    """A job carried to its end: the order, the outcome, what was read of it half-way, and its submissions."""

    order: job.Job
    outcome: job.JobOutcome
    submissions: tuple[str, ...]
    seen: dict[str, tuple[EpochRecord, ...]]
    repair_seconds: dict[str, float]


def _version(folder: Path) -> DataVersion:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    samples = []
    for number in range(60):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pixels[..., number % 2] //= 3
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        split = "train" if number < 36 else "val" if number < 46 else "test"
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        samples.append(Sample(digest, file.name, split, {"label": CLASSES["label"][number % 2]}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def _order(storage: Path, version: DataVersion, *backbones: str, probes: tuple[str, ...] = (), **fit: Any) -> job.Job:
    """Works that train each backbone whole, then probes of the first one, frozen, by these head designs."""
    settings = Fit(**{"epochs": EPOCHS, "batch_size": 6, "image_size_px": 32, **fit})
    asked = [(backbone, "linear", "none") for backbone in backbones]
    asked += [(backbones[0], design, "all") for design in probes]
    works = []
    for backbone, design, freeze in asked:
        variant = Variant(backbone=backbone, heads=(Head(target="label", design=design),), freeze=freeze, fit=settings)
        works.append(Work(f"work-{variant.variant_id}", variant, Weights("none")))
    key, plain = f"{storage.name}-{'-'.join(backbones)}", replace(works[-1], key="plain") if probes else None
    asked_for = {"works": tuple(works), "baseline": plain, "target": "label"}
    return job.Job("train", key, "tiny", storage, version, CLASSES, Workers(count=2), **asked_for)  # type: ignore[arg-type]


def _run(place: Place, order: job.Job, disturb: Callable[[list[str]], dict[str, Any]] | None = None) -> Run:
    submissions: list[str] = []
    seen: dict[str, tuple[EpochRecord, ...]] = {}
    repairs: dict[str, float] = {}

    def run_disturbance() -> None:
        assert disturb is not None
        found = disturb(submissions)
        repairs.update(found.pop("repairs"))
        seen.update(found)

    thread = threading.Thread(target=run_disturbance, daemon=True)
    if disturb:
        thread.start()
    outcome = cluster.run_job(place.cluster, job.write_job(order), key=order.key, name="tiny", on_start=submissions.append)
    if disturb:
        thread.join(10)
    return Run(order, outcome, tuple(submissions), seen, repairs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    storage = tmp_path_factory.mktemp("cluster")
    with cluster.open_cluster(None, storage, num_cpus=2) as opened:
        yield Place(opened, json.loads((storage / "ray" / "cluster.json").read_text())["home"])


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    return _version(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def undisturbed(place: Place, version: DataVersion, tmp_path_factory: pytest.TempPathFactory) -> Run:
    storage = tmp_path_factory.mktemp("undisturbed")
    return _run(place, _order(storage, version, "mobilenet_v3_small", "squeezenet1_1", probes=("linear", "mlp")))


@pytest.fixture(scope="module")
def disturbed(place: Place, version: DataVersion, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A worker is killed in the midst of the first variant, the driver in the midst of the second."""
    storage = tmp_path_factory.mktemp("disturbed")
    order = _order(storage, version, "mobilenet_v3_small", "squeezenet1_1", probes=("linear", "mlp"))
    first, second, *_ = order.works

    def disturb(submissions: list[str]) -> dict[str, Any]:
        before = _wait_for_epochs(order, first, 3)
        _kill(place, lambda p: p.name().startswith("ray::RayTrain"))
        killed = time.monotonic()
        _wait_for_epochs(order, first, len(before) + 1)
        worker_seconds = time.monotonic() - killed
        seen = _wait_for_epochs(order, second, 3)
        _kill(place, lambda p: "flows.job" in p.cmdline())
        killed = time.monotonic()
        # The workers go on for a moment until Ray ends them.
        while len(submissions) < 2:
            time.sleep(0.05)
        _wait_for_epochs(order, second, len(_wait_for_epochs(order, second, 3)) + 1)
        repairs = {"worker": worker_seconds, "driver": time.monotonic() - killed}
        return {"first": before, "second": seen, "repairs": repairs}

    return _run(place, order, disturb)


def _wait_for_epochs(order: job.Job, work: Work, count: int) -> tuple[EpochRecord, ...]:
    """The epochs in a work's progress once there are so many."""
    end_at = time.monotonic() + 300
    while time.monotonic() < end_at:
        epochs = order.work_folder(work).read_progress()
        if len(epochs) >= count:
            return epochs
        time.sleep(0.01)
    raise TimeoutError(work.key)


def _kill(place: Place, wanted: Callable[[psutil.Process], bool]) -> None:
    victim = next(p for p in processes.members(place.mark) if wanted(p))
    os.kill(victim.pid, signal.SIGKILL)


def _digests(run: Run) -> list[str]:
    places = [*(run.order.work_folder(work).place for work in run.order.works), _baseline(run).place]
    return [hashlib.sha256(place.read("bundle/weights.safetensors") or b"").hexdigest() for place in places]


def _baseline(run: Run) -> BaselineFolder:
    return BaselineFolder.of(run.order.storage, "plain")


def _result(run: Run, number: int) -> WorkResult:
    result = run.order.work_folder(run.order.works[number]).read_result()
    assert result is not None
    return result


@pytest.mark.slow
def test_one_job_trains_every_variant(undisturbed: Run) -> None:
    order, outcome = undisturbed.order, undisturbed.outcome
    assert outcome.trained == tuple(work.key for work in order.works)
    assert outcome.reused == ()
    # Once a sample for both probes, however many their epochs.
    assert outcome.num_forwarded == (2 * EPOCHS + 1) * (36 + 10)
    assert 0 < outcome.seconds < 300
    assert len(undisturbed.submissions) == 1
    assert {key: fact.num_bytes for key, fact in order.folder.epochs().items()} == {work.key: EPOCHS for work in order.works}
    for work in order.works:
        trained = read_trained(order.storage, work, reused=False)
        assert trained.metrics["val/label/accuracy"] >= 0.5
        assert (trained.num_parameters == trained.num_trained_parameters) == (work.variant.freeze == "none")
        loaded = bundle.load(order.work_folder(work).fetch_bundle())
        assert loaded.variant == work.variant
        assert loaded.predict([order.version.data / "0.png"])[0]["label"].label in CLASSES["label"]


@pytest.mark.slow
def test_a_job_fits_its_baseline_beside_and_forwards_nothing_for_it(undisturbed: Run) -> None:
    found = _baseline(undisturbed).read()
    assert isinstance(found, Baseline)
    assert (found.label, found.num_samples) == ("logistic probe on mobilenet_v3_small", 36)
    assert found.metrics["val/label/accuracy"] >= 0.5
    assert undisturbed.order.folder.read_shares().keys() == {work.key for work in undisturbed.order.works[2:]}


@pytest.mark.slow
def test_a_driver_alone_trains_the_very_heads_of_a_group_though_it_is_killed(
    undisturbed: Run, version: DataVersion, tmp_path: Path
) -> None:
    whole = _order(tmp_path, version, "mobilenet_v3_small", probes=("linear", "mlp"))
    order = replace(whole, works=whole.works[1:], in_driver=True)
    job_file = job.write_job(order).job_file
    with subprocess.Popen([sys.executable, "-m", "flows.job", job_file]) as driver:
        while not order.folder.num_stored()[0]:
            assert driver.poll() is None
            time.sleep(0.01)
        driver.kill()
    assert order.folder.read_outcome() is None
    subprocess.run([sys.executable, "-m", "flows.job", job_file], check=True)
    outcome = order.folder.read_outcome()
    assert outcome is not None
    assert outcome.trained == tuple(work.key for work in order.works)
    assert outcome.num_forwarded == 36 + 10, "what was stored is not forwarded again"
    assert [group.num_workers for group in order.folder.read_groups()] == [1, 1]
    (line,) = order.folder.read_interruptions()
    assert line.startswith("The driver of the training died before the first epoch; ")
    alone = Run(order, outcome, (), {}, {})
    assert _digests(alone) == [_digests(undisturbed)[number] for number in (2, 3, 4)]


@pytest.mark.slow
def test_a_finished_job_leaves_no_checkpoints_to_resume_from(undisturbed: Run) -> None:
    assert list((undisturbed.order.storage / "ray" / "train").glob("*/checkpoint_*")) == []


@pytest.mark.slow
def test_the_same_job_again_trains_nothing(place: Place, undisturbed: Run) -> None:
    order = undisturbed.order
    before = [order.work_folder(work).stamp() for work in order.works]
    again = _run(place, order)
    assert again.outcome == job.JobOutcome(reused=tuple(work.key for work in order.works))
    assert [order.work_folder(work).stamp() for work in order.works] == before


@dataclass(frozen=True)
class Grown:
    """The data with one more sample, and the works that more probes of it are."""

    version: DataVersion
    probes: list[Work]


@pytest.fixture(scope="module")
def grown(undisturbed: Run) -> Grown:
    order = undisturbed.order
    file = order.version.data / "new.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    new = Sample(hashlib.md5(file.read_bytes()).hexdigest(), file.name, "train", {"label": "red"})
    version = replace(order.version, digest="e" * 32, samples=(*order.version.samples, new))
    works = _order(order.storage, version, "mobilenet_v3_small", probes=("linear", "mlp", "cosine", "attention")).works[1:]
    return Grown(version, [replace(work, key=f"{work.key}-grown") for work in works])


@pytest.mark.slow
def test_more_heads_and_a_new_sample_cost_that_sample_alone(place: Place, undisturbed: Run, grown: Grown) -> None:
    works, plain = tuple(grown.probes[:3]), Path(_baseline(undisturbed).place.address) / BASELINE
    before = plain.stat().st_mtime_ns
    run = _run(place, replace(undisturbed.order, key="grown", version=grown.version, works=works))
    assert run.outcome.trained == tuple(work.key for work in works)
    assert run.outcome.num_forwarded == 1
    assert plain.stat().st_mtime_ns == before, "a baseline that is fitted is not fitted again"


@pytest.mark.slow
def test_a_variant_that_diverges_is_given_up_with_its_reason_and_the_others_go_on(
    place: Place, undisturbed: Run, grown: Grown
) -> None:
    wild, tame = (
        _order(undisturbed.order.storage, grown.version, "squeezenet1_1", learning_rate=rate, epochs=2).works[0]
        for rate in (9.9, 1e-3)
    )
    # A head that looks at maps instead of their mean needs what was never stored.
    maps = grown.probes[3]
    run = _run(place, replace(undisturbed.order, key="maps", version=grown.version, works=(wild, tame, maps)))
    assert run.outcome.trained == (wild.key, tame.key, maps.key)
    assert run.outcome.num_forwarded == (1 + 2) * (36 + 10 + 1)
    assert len(run.submissions) == 1
    failure = run.order.work_folder(wild).read_failure()
    assert failure is not None
    assert "lower learning_rate, now 9.9" in failure.reason
    assert run.order.work_folder(wild).is_finished(), "another try would only diverge again"
    assert read_trained(run.order.storage, tame, reused=False).metrics["val/label/accuracy"] >= 0
    assert run.order.work_folder(tame).read_failure() is None


@pytest.mark.slow
def test_a_training_that_can_never_succeed_ends_at_once_with_its_reason_though_members_wait_for_each_other(
    place: Place, version: DataVersion, tmp_path: Path
) -> None:
    missing = replace(version.samples[0], digest="0" * 32, file="nowhere.png")
    # Whoever of the two members reads it raises, and the other one waits for its gradients.
    order = _order(tmp_path, replace(version, samples=(*version.samples[1:], missing)), "squeezenet1_1")
    submissions: list[str] = []
    with pytest.raises(AskedWrongly, match=r"image nowhere\.png \(md5 0{32}\) .* is neither in the DVC cache"):
        cluster.run_job(place.cluster, job.write_job(order), key=order.key, name="tiny", on_start=submissions.append)
    assert len(submissions) == 1, "another driver would only meet it again"
    assert not order.work_folder(order.works[0]).is_finished(), "with the file in its place it trains"
    assert len(order.folder.read_groups()) == 1, "nor is the group tried again"
    deadline = time.monotonic() + 20
    while any(p.name().startswith("ray::RayTrain") or "flows.job" in p.cmdline() for p in processes.members(place.mark)):
        assert time.monotonic() < deadline, "what trained ends with its driver"
        time.sleep(0.2)


# One holdout is read by the driver, one is enough for both members of the group to read a part.
@pytest.mark.slow
@pytest.mark.parametrize("least", [1, 2 * MIN_SHARD_SAMPLES["image"]], ids=["small", "large"])
def test_a_holdout_is_scored_sample_by_sample_bundle_after_bundle(
    place: Place, version: DataVersion, undisturbed: Run, least: int
) -> None:
    train = undisturbed.order
    holdout = [sample for sample in version.samples if sample.split == "test"]
    version = replace(version, digest=f"{least:032}", samples=tuple(holdout) * -(-least // len(holdout)))
    names = tuple(bundle_name(work.key) for work in train.works[:2])
    order = replace(train, kind="score", key=f"s{least}", works=(), version=version, bundles=names)
    outcome = cluster.run_job(place.cluster, job.write_job(order), key=order.key, name="tiny")
    assert outcome.scores is not None
    for name in names:
        path = train.fetch_bundle(name)
        table = job.read_scores(job.scores_file(train.storage, bundle.digest(path), version.digest))
        assert outcome.scores[name] == str(train.storage / "scores" / f"{bundle.digest(path)[:16]}-{version.digest}-3.json")
        assert table.bundle_digest == bundle.digest(path)
        assert len(table.rows) == len(version.samples)
        told = bundle.load(path).predict([train.version.data / sample.file for sample in holdout])
        answers = {sample.digest: each["label"] for sample, each in zip(holdout, told, strict=True)}
        truths = {sample.digest: sample.labels["label"] for sample in holdout}
        for row in table.rows:
            answer = answers[row.digest]
            assert isinstance(answer, bundle.Prediction)
            assert (row.truth, row.predicted) == (truths[row.digest], answer.label)
            assert row.probability == pytest.approx(answer.probability, abs=1e-4)
        hits = sum(row.truth == row.predicted for row in table.rows)
        assert table.metrics["label/accuracy"] == pytest.approx(hits / len(table.rows))


@pytest.mark.slow
def test_a_training_outlives_a_killed_worker_and_a_killed_driver(disturbed: Run, undisturbed: Run) -> None:
    assert len(disturbed.submissions) == 2
    assert disturbed.outcome.trained == undisturbed.outcome.trained
    assert disturbed.outcome.num_forwarded == undisturbed.outcome.num_forwarded
    print("seconds to the next epoch after a kill:", disturbed.repair_seconds)  # noqa: T201


@pytest.mark.slow
def test_it_ends_with_the_very_weights_of_an_undisturbed_one(disturbed: Run, undisturbed: Run) -> None:
    assert _digests(disturbed) == _digests(undisturbed)
    for number in range(2):
        assert _result(disturbed, number).metrics == _result(undisturbed, number).metrics
        assert _result(disturbed, number).confusion == _result(undisturbed, number).confusion


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seen"), [(0, "first"), (1, "second")], ids=["killed worker", "killed driver"])
def test_it_went_on_from_its_last_checkpoint(disturbed: Run, number: int, seen: str) -> None:
    # An epoch's seconds are never the same twice: those of before the kill were kept, not trained again. The last may be lost.
    before, after = disturbed.seen[seen], _result(disturbed, number).epochs
    assert len(before) >= 3
    assert [epoch.seconds for epoch in after[: len(before) - 1]] == [epoch.seconds for epoch in before[:-1]]
