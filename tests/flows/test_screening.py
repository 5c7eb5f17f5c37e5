"""A training in which variants probe and the best go on, by a worker group of one in this process, which is killed on purpose."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed

from flows import job
from flows.cluster import workers
from flows.files import read_json
from flows.job.training import member, screening
from flows.plan import parse_plan
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.stages.planning import make_work_plan
from flows.stages.values import WorkPlan
from flows.work_folder import WorkFolder, works_root
from heads import bundle
from heads.backbones import BACKBONES
from heads.spec import Fit, Head, Variant

CLASSES = ("green", "red")
NUM_TRAIN, NUM_VAL, SIZE_PX = 24, 12, 32
EPOCHS, NUM_PROBING, KEPT = 6, 2, 2
# What ranks is not what makes an epoch the best one.
METRIC = "label/f1_macro"
# In the plan's order the first is the worst on validation.
RATES = (0.003, 0.1, 0.001, 0.01)


class Killed(Exception):
    """Stands for a kill of the group."""


@dataclass
class Group:
    """What Ray keeps of a worker group: its last checkpoint. It is killed instead of reaching this many of them."""

    folder: Path
    max_reports: float = math.inf
    num_reports: int = 0

    def report(self, save: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        if self.num_reports >= self.max_reports:
            raise Killed
        self.num_reports += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        assert save is not None, "who is alone leads"
        save(self.folder)

    def last_checkpoint(self, into: Path) -> Path | None:
        return Path(shutil.copytree(self.folder, into / "checkpoint")) if self.folder.is_dir() else None

    def last_note(self, name: str) -> Any:
        return read_json(self.folder / name)


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The torch.distributed that Ray sets up for a group, here of one process; the group's thread count ends with it."""
    before, meeting = torch.get_num_threads(), tmp_path_factory.mktemp("group") / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Noise with less of green or of red, which tells the two classes."""
    folder, random, samples = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(NUM_TRAIN + NUM_VAL):
        pixels = random.integers(0, 256, (SIZE_PX, SIZE_PX, 3)).astype(float)
        pixels[..., number % 2] *= 0.6
        file = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        split, digest = "train" if number < NUM_TRAIN else "val", hashlib.md5(file.read_bytes()).hexdigest()
        samples.append(Sample(digest, file.name, split, {"label": CLASSES[number % 2]}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.manual_seed(0)
    torch.save(BACKBONES["squeezenet1_1"].build().state_dict(), file)
    return file


def work_plan_of(version: DataVersion, weights: Path, screening: int | None = KEPT) -> WorkPlan:
    """Variants that probe before they fine-tune, one a rate, and beside each one that is frozen to its end."""
    fit = {"epochs": EPOCHS, "batch_size": 6, "image_size_px": SIZE_PX, "augment": "none", "learning_rate": list(RATES)}
    told = {"name": "x", "backbones": ["squeezenet1_1"], "weights": str(weights), "heads": ["linear"], "fit": fit}
    rules = {"freeze": ["lp_ft", "all"], "screening": screening, "promotion": {"metric": METRIC}}
    return make_work_plan(parse_plan(told | rules), version)


def begin(storage: Path, work_plan: WorkPlan) -> job.Job:
    keep = work_plan.plan.screening
    order = job.Job(
        kind="train",
        key=work_plan.key,
        name="x",
        storage=storage,
        version=work_plan.version,
        classes=work_plan.classes,
        workers=work_plan.plan.workers.group(),
        works=work_plan.works,
        screening=None if keep is None else job.Screening(keep, work_plan.metric),
    )
    job.write_job(order)
    return order


def train(order: job.Job, max_reports: float = math.inf) -> Group:
    """Does what is left of the order, and gives the group that did; what Ray keeps of a group survives it."""
    group = Group(order.storage / "checkpoint", max_reports)
    found = {"rank": lambda: 0, "num_ranks": lambda: 1, "device": lambda: torch.device("cpu")}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("report", "last_checkpoint", "last_note"):
            found[name] = getattr(group, name)
        for name, function in found.items():
            patch.setattr(workers, name, function)
        member.train_works({"job_folder": order.folder.address})
    return group


@pytest.fixture(scope="module")
def screened(version: DataVersion, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> job.Job:
    order = begin(tmp_path_factory.mktemp("screened"), work_plan_of(version, weights))
    train(order)
    return order


@pytest.fixture(scope="module")
def whole(version: DataVersion, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> job.Job:
    """The same variants, all trained to their ends."""
    order = begin(tmp_path_factory.mktemp("whole"), work_plan_of(version, weights, screening=None))
    train(order)
    return order


def result(order: job.Job, work: Work) -> dict[str, Any]:
    """Its result, without what is never the same twice."""
    told: dict[str, Any] = json.loads(order.work_folder(work).place.read("result.json") or b"")
    for row in (told, *told["epochs"]):
        del row["seconds"]
    return {name: value for name, value in told.items() if name not in ("work_key", "shared_seconds", "gpu_seconds")}


def weights_of(order: job.Job, work: Work) -> bytes:
    return order.work_folder(work).place.read("bundle/weights.safetensors") or b""


def ranked(whole: job.Job) -> list[tuple[int, float]]:
    """Of the variants that probe, by their places in the plan: best first, with the measure of their best probing epoch."""
    found = []
    for place, work in enumerate(whole.works):
        if work.variant.freeze == "lp_ft":
            probing = [row["metrics"] for row in result(whole, work)["epochs"][:NUM_PROBING]]
            best = max(probing, key=lambda metrics: (metrics["val/label/accuracy"], -metrics["val/label/loss"]))
            found.append((place, best[f"val/{METRIC}"]))
    return sorted(found, key=lambda one: -one[1])


def test_the_best_after_the_probe_phase_end_as_they_would_alone_to_the_byte(screened: job.Job, whole: job.Job) -> None:
    order = ranked(whole)
    assert order != sorted(order), "the plan's order is not theirs"
    for place, _ in order[:KEPT]:
        assert result(screened, screened.works[place]) == result(whole, whole.works[place])
        assert weights_of(screened, screened.works[place]) == weights_of(whole, whole.works[place])
        assert len(result(screened, screened.works[place])["epochs"]) == EPOCHS


def test_the_others_stop_at_their_rung_with_the_reason_and_the_best_of_it(screened: job.Job, whole: job.Job) -> None:
    for number, (place, value) in enumerate(ranked(whole)[KEPT:], start=KEPT + 1):
        work, alone = screened.works[place], result(whole, whole.works[place])
        told = result(screened, work)
        assert told["epochs"] == alone["epochs"][:NUM_PROBING]
        assert told["ended"] == (
            f"screened out after the probe phase: number {number} of 4 by val/{METRIC} ({value:.4f}), and the best 2 go on"
        )
        assert told["metrics"] == told["epochs"][told["best_epoch"]]["metrics"]
        loaded = bundle.load(screened.work_folder(work).fetch_bundle() or Path())
        val = [sample for sample in screened.version.samples if sample.split == "val"]
        answers = [each["label"].label for each in loaded.predict([screened.version.data / sample.file for sample in val])]
        hits = sum(answer == sample.labels["label"] for answer, sample in zip(answers, val, strict=True))
        assert hits / NUM_VAL == pytest.approx(told["metrics"]["val/label/accuracy"])


def test_whoever_is_not_screened_trains_to_the_end_beside_it(screened: job.Job, whole: job.Job) -> None:
    for work, alone in zip(screened.works, whole.works, strict=True):
        if work.variant.freeze == "all":
            assert work.key == alone.key
            assert result(screened, work) == result(whole, alone)
            assert weights_of(screened, work) == weights_of(whole, alone)
            assert result(screened, work)["ended"] == f"all {EPOCHS} epochs are done"


def test_what_a_screening_leaves_is_its_standing_and_nothing_to_go_on_from(screened: job.Job) -> None:
    for work in screened.works:
        names = {path.name for path in Path(screened.work_folder(work).place.address).iterdir()}
        assert ("probe.json" in names) == work.is_screened
        assert {"result.json", "bundle"} <= names
        assert names.isdisjoint({"probe.pt", "training.pt", "failure.json"})


def files(order: job.Job) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(works_root(order.storage).address).rglob("*") if path.is_file()}


def test_a_rerun_trains_nothing_again(screened: job.Job) -> None:
    before = files(screened)
    assert train(screened).num_reports == 0
    assert files(screened) == before


def kill_before(file: str, number: int) -> Any:
    """A patch by which the group is killed instead of finishing its file of this name and number."""
    replace, found = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        found.extend([target] if Path(target).name == file else [])
        if len(found) > number:
            raise Killed
        return replace(self, target)

    patch = pytest.MonkeyPatch()
    patch.setattr(Path, "replace", dying)
    return patch


# The file that is not finished any more, and which of them; or after how many checkpoints of fine-tuning.
KILLS = {
    "before a standing is written": ("probe.json", 2),
    "between the rungs": ("result.json", 4),
    "when one is screened out": ("result.json", 5),
    "in the second to go on": ("", 5),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_to_the_same_bytes(
    kill: str, screened: job.Job, version: DataVersion, weights: Path, tmp_path: Path
) -> None:
    order, (file, number) = begin(tmp_path, work_plan_of(version, weights)), KILLS[kill]
    with ExitStack() as held:
        if file:
            held.callback(kill_before(file, number).undo)
        held.enter_context(pytest.raises(Killed))
        train(order, max_reports=math.inf if file else number)
    probed = {path: at for path, at in files(order).items() if path.name in ("probe.json", "result.json")}
    assert len([path for path in probed if path.name == "probe.json"]) == (2 if file == "probe.json" else 4)
    assert len([path for path in probed if path.name == "result.json"]) < len(order.works)
    tuned = 0 if file else number
    assert train(order).num_reports == KEPT * (EPOCHS - NUM_PROBING) - tuned, "epochs of before are not trained again"
    assert probed.items() <= files(order).items()
    for work in order.works:
        assert result(order, work) == result(screened, work)
        assert weights_of(order, work) == weights_of(screened, work)


def test_probes_whose_checkpoints_are_damaged_are_left_aside_with_a_word_and_trained_again(
    screened: job.Job, version: DataVersion, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = begin(tmp_path, work_plan_of(version, weights))
    with ExitStack() as held:
        held.callback(kill_before("result.json", 4).undo)
        held.enter_context(pytest.raises(Killed))
        train(order)
    rivals = [work for work in order.works if work.is_screened]
    for work in rivals:
        order.work_folder(work).place.write("probe.pt", b"damaged")
    with caplog.at_level(logging.WARNING):
        train(order)
    assert len([record for record in caplog.records if "left aside" in record.getMessage()]) == len(rivals)
    for work in rivals:
        assert result(order, work) == result(screened, work)
        assert weights_of(order, work) == weights_of(screened, work)


def order_of(storage: Path, *values: float | None) -> job.Job:
    """A job with a work a value: what it reached in its probe, none where it failed there."""
    works = []
    for number, value in enumerate(values):
        variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), freeze="lp_ft", fit=Fit(seed=number))
        works.append(Work(f"w{number}", variant, Weights("none"), is_screened=True))
        if value is not None:
            metrics = {f"val/{METRIC}": value, "val/label/accuracy": 1 - value}
            WorkFolder.of(storage, f"w{number}").write_probe(metrics)
    version = DataVersion("d" * 32, "r" * 40, (), storage, ())
    rules = job.Screening(1, METRIC)
    return job.Job("train", "k", "x", storage, version, {"label": CLASSES}, Workers(), works=tuple(works), screening=rules)


def test_rivals_are_ranked_by_the_plans_measure_ties_in_its_order_without_those_that_failed(tmp_path: Path) -> None:
    order = order_of(tmp_path, 0.5, None, math.nan, 0.9, 0.0, 0.9, 0.5)
    told = [(work.key, value) for work, value in screening.rank_probes(order, order.works)]
    assert told[:-1] == [("w3", 0.9), ("w5", 0.9), ("w0", 0.5), ("w6", 0.5), ("w4", 0.0)]
    assert told[-1][0] == "w2", "one without a measure is behind all that have one"
