"""Planted challengers on photographs: trained bundles, and others altered from them, scored and judged by the real stages."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from flows import job
from flows.job.datasets import Splits
from flows.job.holdout import scoring
from flows.job.holdout.scores import write_scores
from flows.job.training import together
from flows.job.trunks import JobFeatures
from flows.records import DataVersion, Sample, ScoreTable, Verdict, Weights, Work, Workers
from heads import bundle
from heads.bundle import Bundle
from heads.data.decoding import decode
from heads.spec import Fit, Head, Variant
from tests.flows import test_promotion
from tests.flows.test_promotion import Nights

SHARED = Path(__file__).parents[2].parent / "shared"
PHOTOS, SQUEEZENET = SHARED / "data" / "hymenoptera", SHARED / "weights" / "squeezenet1_1_from_fp16-aec6cba8.pth"
pytestmark = pytest.mark.skipif(not (PHOTOS.is_dir() and SQUEEZENET.is_file()), reason="the photographs are not here")
CLASSES = ("ants", "bees")
SPLITS = ("train", "test", "train", "test", "val")
READ = dict.fromkeys(("worst_class", "worst_group", "calibration", "negative_flips"), "block")
GUARDS = READ | dict.fromkeys(("latency", "loads", "leaks"), "off")


@pytest.fixture(scope="module")
def version() -> DataVersion:
    return version_of(
        Sample(md5_of(file), str(file), SPLITS[place % len(SPLITS)], {"label": file.parent.name})
        for place, file in enumerate(sorted(PHOTOS.rglob("*.jpg")))
    )


def version_of(samples: Iterable[Sample]) -> DataVersion:
    return DataVersion("d1", "r" * 40, tuple(samples), PHOTOS, ())


def md5_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Studio:
    """Where bundles are trained and scored, on features that they share."""

    storage: Path

    def train(self, name: str, version: DataVersion, epochs: int, rate: float) -> tuple[Work, Path]:
        """A real training on stored features: its work, and its bundle."""
        fit = Fit(epochs=epochs, batch_size=16, image_size_px=96, learning_rate=rate, augment="none")
        variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), fit=fit)
        work = Work(name, variant, Weights("squeezenet", SQUEEZENET))
        asked = job.Job("train", "k", "m", self.storage, version, {"label": CLASSES}, Workers(), works=(work,))
        features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
        features.fill(asked.works)
        together.train_probes(features, [work])
        return work, asked.work_folder(work).fetch_bundle() or Path()

    def score(self, version: DataVersion, *bundles: Path) -> list[ScoreTable]:
        """The scores of bundles on the test split."""
        named = tuple(map(str, bundles))
        asked = job.Job("score", "s", "m", self.storage, version, {"label": CLASSES}, Workers(), bundles=named)
        scoring.score(asked)
        digests = [bundle.digest(asked.fetch_bundle(name)) for name in named]
        tables = [job.read_scores(job.scores_file(self.storage, digest, version.digest)) for digest in digests]
        return [table for table in tables if table]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def poor(studio: Studio, version: DataVersion) -> Path:
    """The bundle of a training that hardly began."""
    return studio.train("poor", version, 1, 1e-4)[1]


@dataclass
class Court:
    """Reigns that begin with a first model, each in a folder of its own."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def begin(self, name: str, before: str = "empty") -> Nights:
        """A reign that goes on from another one, as often as one likes."""
        shutil.copytree(self.folder / before, self.folder / name)
        return Nights(self.folder / name, self.monkeypatch)

    def judge(
        self, nights: Nights, key: str, table: ScoreTable, work: Work | None = None, alpha: float = 0.05, **guards: str
    ) -> Verdict:
        named = replace(table, bundle_digest=key * 8)
        write_scores(job.scores_file(nights.folder, named.bundle_digest, "d1"), named)
        return nights.judge(key, named, work, promotion={"alpha": alpha, "guards": GUARDS | guards}).verdict


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry in which nothing is: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("court")
    (folder / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        Nights(folder / "empty", patched).registry.models()
    return folder


@pytest.fixture
def court(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Court:
    shutil.copytree(empty / "empty", tmp_path / "empty")
    return Court(tmp_path, monkeypatch)


def refusing(verdict: Verdict) -> set[str]:
    """The guards that kept a challenger from being promoted."""
    return {one.guard for one in verdict.findings if one.blocks and not one.passed}


def altered(source: Path, dest: Path, alter: Callable[[torch.nn.Module], None], temperature: float | None = None) -> Path:
    """A copy of a bundle whose head's weights, and temperature, if one is given, are others."""
    made: Bundle = bundle.load(source)
    with torch.no_grad():
        alter(made.model.heads)
    temperatures = dict(made.temperatures) if temperature is None else {"label": temperature}
    return bundle.save(
        dest,
        model=made.model,
        variant=made.variant,
        classes=made.classes,
        preprocess=made.preprocess,
        facts=made.facts,
        temperatures=temperatures,
    )


def nudge(heads: torch.nn.Module) -> None:
    next(heads.parameters()).mul_(1.0001)


def negate(heads: torch.nn.Module) -> None:
    for parameter in heads.parameters():
        parameter.neg_()


def leave(heads: torch.nn.Module) -> None:
    """Leave the head as it is."""


# A challenger: the trained bundle that it is, how it is altered, its temperature if not the fitted one, what it does not pass.
PLANTED: dict[str, tuple[str, Callable[[torch.nn.Module], None], float | None, set[str]]] = {
    "equal": ("poor", nudge, None, {"paired_test", "calibration"}),
    "worse": ("poor", negate, None, {"paired_test", "min_gain", "worst_class", "calibration", "negative_flips"}),
    "better": ("good", leave, None, set()),
    "better but over-confident": ("good", leave, 0.02, {"calibration"}),
}


def test_altered_bundles_get_their_verdicts_on_photographs(
    studio: Studio, poor: Path, version: DataVersion, court: Court, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_promotion, "SAMPLES", version.samples)
    trained: Mapping[str, Path] = {"poor": poor, "good": studio.train("good", version, 12, 3e-3)[1]}
    bundles = [altered(trained[of], tmp_path / name, alter, heat) for name, (of, alter, heat, _) in PLANTED.items()]
    champion, *tables = studio.score(version, poor, *bundles)
    assert court.judge(court.begin("reign"), "00000001", champion, calibration="off").promoted
    for name, table in zip(PLANTED, tables, strict=True):
        nights, refused = court.begin(f"reign of {name}", "reign"), PLANTED[name][3]
        verdict = court.judge(nights, "00000002", table)
        assert {one.guard for one in verdict.findings if not one.passed} == refused == refusing(verdict), name
        assert verdict.promoted == (not refused), name
        assert nights.registry.current("m")["champion"].version == ("1" if refused else "2"), name


def test_a_challenger_that_is_better_but_for_the_pictures_of_one_camera_is_told_by_that_group(
    studio: Studio, version: DataVersion, court: Court, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera of the south sees bees alone, in negatives; its labels were wrong when the challenger was trained.

    The champion is of a time when those of the north were: half of them.
    """
    samples = [_from_the_south(sample, tmp_path) if place % 4 == 1 else sample for place, sample in enumerate(version.samples)]
    cameras = version_of(replace(s, group="south" if s.file.endswith("png") else "north") for s in samples)
    monkeypatch.setattr(test_promotion, "SAMPLES", cameras.samples)
    half = _relabelled(cameras, lambda sample: sample.group == "north" and int(sample.digest, 16) % 2 == 0)
    south = _relabelled(cameras, lambda sample: sample.group == "south")
    champion, challenger = studio.score(cameras, *(studio.train(*of, 12, 3e-3)[1] for of in (("half", half), ("south", south))))
    first = court.judge(court.begin("cameras"), "00000001", champion, alpha=0.4, calibration="off")
    assert first.promoted, "hardly better than a guess"
    warn = dict.fromkeys(("calibration", "negative_flips"), "warn")
    assert court.judge(court.begin("warned", "cameras"), "00000002", challenger, **warn, worst_group="warn").promoted
    nights = court.begin("blocked", "cameras")
    verdict = court.judge(nights, "00000002", challenger, **warn)
    assert refusing(verdict) == {"worst_group"}
    assert "south" in next(one.words for one in verdict.findings if one.guard == "worst_group")
    assert verdict.figures["gain"] > 0.05
    assert nights.registry.current("m")["champion"].version == "1"


def _from_the_south(sample: Sample, folder: Path) -> Sample:
    """The picture of a bee in negative, of two greys."""
    if sample.labels["label"] == "ants":
        return sample
    grey = decode(Path(sample.file)).convert("L").point(lambda value: 255 * (value > 128))
    file = folder / f"{sample.digest}.png"
    ImageOps.invert(grey).save(file)
    return replace(sample, digest=md5_of(file), file=str(file))


def _relabelled(version: DataVersion, wrongly: Callable[[Sample], bool]) -> DataVersion:
    """The version with the other class as the label of some samples of train and val."""
    other = {"ants": "bees", "bees": "ants", None: None}
    return version_of(
        replace(s, labels={"label": other[s.labels["label"]]}) if s.split != "test" and wrongly(s) else s for s in version.samples
    )


def test_a_challenger_that_is_better_but_trained_on_the_holdouts_pictures_is_told_so(
    studio: Studio, poor: Path, version: DataVersion, court: Court, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the holdout's photographs are in train as well, smaller: no digest tells it."""
    leaked = [sample for sample in version.samples if sample.split == "test"][::2]
    files = [tmp_path / f"{sample.digest}.png" for sample in leaked]
    for sample, file in zip(leaked, files, strict=True):
        image = decode(Path(sample.file))
        image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS).save(file)
    copies = (Sample(md5_of(file), str(file), "train", sample.labels) for sample, file in zip(leaked, files, strict=True))
    leaky = version_of((*version.samples, *copies))
    monkeypatch.setattr(test_promotion, "SAMPLES", leaky.samples)
    work, trained = studio.train("leaky", leaky, 12, 3e-3)
    champion, challenger = studio.score(leaky, poor, trained)
    shutil.copytree(studio.storage / "features", court.folder / "empty" / "features")
    nights = court.begin("leaking")
    assert court.judge(nights, "00000001", champion, calibration="off").promoted
    verdict = court.judge(nights, "00000002", challenger, work, leaks="block")
    assert {one.guard for one in verdict.findings if not one.passed} == refusing(verdict) == {"leaks"}
    finding = next(one for one in verdict.findings if one.guard == "leaks")
    assert finding.figures["num_leaks"] == len(leaked)
    assert finding.figures["num_samples"] == sum(sample.split == "test" for sample in version.samples)
    assert nights.registry.current("m")["champion"].version == "1"
