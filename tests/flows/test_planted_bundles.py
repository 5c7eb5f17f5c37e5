"""Planted challengers on photographs: two trained bundles, others altered from them, scored and judged by the real stages."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows import job
from flows.job import scoring, together
from flows.job.datasets import Splits
from flows.job.scores import write_scores
from flows.job.trunks import JobFeatures
from flows.records import DataVersion, Sample, ScoreTable, Weights, Work, Workers
from flows.stages.values import Promotion
from heads import bundle
from heads.bundle import Bundle
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
    files = sorted(PHOTOS.rglob("*.jpg"))
    digests = {file: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    samples = tuple(
        Sample(digest, str(file.relative_to(PHOTOS)), SPLITS[place % len(SPLITS)], {"label": file.parent.name})
        for place, (file, digest) in enumerate(digests.items())
    )
    return DataVersion("d1", "r" * 40, samples, PHOTOS, ())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, version: DataVersion) -> dict[str, Path]:
    """The bundles of a training that hardly began, and of a whole one."""
    works = {}
    for name, epochs, rate in (("poor", 1, 1e-4), ("good", 12, 3e-3)):
        fit = Fit(epochs=epochs, batch_size=16, image_size_px=96, learning_rate=rate, augment="none")
        variant = Variant(backbone="squeezenet1_1", heads=(Head(target="label"),), fit=fit)
        works[name] = Work(name, variant, Weights("squeezenet", SQUEEZENET))
    storage = tmp_path_factory.mktemp("storage")
    asked = job.Job("train", "k", "m", storage, version, {"label": CLASSES}, Workers(), works=tuple(works.values()))
    features = JobFeatures(asked, Splits(asked), torch.device("cpu"))
    features.fill(asked.works)
    for work in asked.works:
        together.train_probes(features, [work])
    return {name: asked.work_folder(work).fetch_bundle() or Path() for name, work in works.items()}


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
    trained: dict[str, Path], version: DataVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_promotion, "SAMPLES", version.samples)
    bundles = [altered(trained[of], tmp_path / name, alter, heat) for name, (of, alter, heat, _) in PLANTED.items()]
    asked = job.Job(
        "score", "s", "m", tmp_path, version, {"label": CLASSES}, Workers(), bundles=tuple(map(str, (trained["poor"], *bundles)))
    )
    scoring.score(asked)
    files = (job.scores_file(tmp_path, bundle.digest(asked.fetch_bundle(name)), version.digest) for name in asked.bundles)
    champion, *tables = map(job.read_scores, files)

    def judge(nights: Nights, key: str, table: ScoreTable, **guards: str) -> Promotion:
        named = replace(table, bundle_digest=key * 8)
        write_scores(job.scores_file(nights.folder, named.bundle_digest, "d1"), named)
        return nights.judge(key, named, promotion={"guards": GUARDS | guards})

    (tmp_path / "reign").mkdir()
    assert judge(Nights(tmp_path / "reign", monkeypatch), "00000001", champion, calibration="off").verdict.promoted
    for name, table in zip(PLANTED, tables, strict=True):
        shutil.copytree(tmp_path / "reign", tmp_path / f"reign of {name}")
        nights, refused = Nights(tmp_path / f"reign of {name}", monkeypatch), PLANTED[name][3]
        verdict = judge(nights, "00000002", table).verdict
        assert {one.guard for one in verdict.findings if not one.passed} == refused, name
        assert verdict.promoted == (not refused), name
        assert nights.registry.current("m")["champion"].version == ("1" if refused else "2"), name
