"""Pictures of the holdout that are also in train: found at another size, quality or crop, and told as a finding."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.neighbors import NearestNeighbors

from flows import job
from flows.errors import HeadstartError
from flows.gate import Case, Policy, Trials, decide
from flows.job.holdout import leaks as search_job
from flows.job.job import read_job
from flows.leak_records import Leak, Leaks
from flows.plan import Plan
from flows.records import DataVersion, Sample, ScoreTable, Severity, TrainedVariant, Weights, Work
from flows.stages.trials.collect import collect_trials
from flows.stages.values import Scores, WorkPlan
from heads.data.decoding import decode
from heads.data.near_duplicates.likeness import SAME_PICTURE, Details, details_of, is_comparable, likeness
from heads.features import FeatureStore, Key, neighbours
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored

SHARED = Path(__file__).parents[2].parent / "shared"
MOBILENET = SHARED / "weights" / "mobilenet_v2_from_int8-cf435c58.pth"
real = pytest.mark.skipif(not MOBILENET.exists(), reason="the real images and weights are not on this machine")
METRIC = "label/accuracy"


def resaved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return decode(file.getvalue())


def cut(image: Image.Image, share: float, right: float, down: float) -> Image.Image:
    width, height = int(image.width * share), int(image.height * share)
    left, top = int((image.width - width) * right), int((image.height - height) * down)
    return image.crop((left, top, left + width, top + height))


ALTERED: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((int(image.width * 1.7), int(image.height * 1.7))),
    "quality 30": lambda image: resaved(image, 30),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cut to 95 %": lambda image: cut(image, 0.95, 0.5, 0.5),
    "cut to 85 %": lambda image: cut(image, 0.85, 0.3, 0.7),
    "all at once": lambda image: resaved(ALTERED["half"](cut(image, 0.93, 0.2, 0.6)), 40),
}


# Not planted: what these do to a picture is asked of the pixels alone.
SHADED: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
    "pale": lambda image: ImageEnhance.Color(image).enhance(0.6),
    "dark, grey and cut": lambda image: resaved(cut(SHADED["darker"](ALTERED["grey"](image)), 0.9, 0.8, 0.2), 40),
}


def photographs(name: str, step: int) -> list[Path]:
    return sorted(file for file in (SHARED / "data" / name).rglob("*.*") if file.suffix.lower() == ".jpg")[::step]


def described(image: Image.Image) -> Details:
    details = details_of(image)
    assert details is not None
    return details


@real
@pytest.mark.parametrize(("name", "step"), [("hymenoptera", 6), ("sign_digits", 28)])
def test_altered_pictures_are_all_the_same_and_honest_ones_of_real_sets_are_not(name: str, step: int) -> None:
    """Every altered picture, and of honest ones the five most alike in 8 x 8 greys, which are harder than a class's."""
    images = [decode(file) for file in photographs(name, step)]
    details = [described(image) for image in images]
    small = np.array([np.asarray(image.convert("L").resize((8, 8)), dtype=float).ravel() for image in images])
    near = NearestNeighbors(n_neighbors=6, metric="correlation").fit(small).kneighbors(small[:30], return_distance=False)
    honest = [likeness(details[i], details[j]) for i, row in enumerate(near) for j in row if i != j]
    assert max(honest) < SAME_PICTURE - 0.05
    for some, alterations in ((images[:12], ALTERED), (images[:4], SHADED)):
        for alter in alterations.values():
            found = [likeness(described(alter(image)), details[i]) for i, image in enumerate(some)]
            assert min(found) > SAME_PICTURE + 0.01


def icon(shape: str, colour: str, ground: str = "white") -> Image.Image:
    """A shape of one colour, and a small light of the same colour in a corner, or only this light in it."""
    image = Image.new("RGB", (72, 72), ground)
    draw = ImageDraw.Draw(image)
    if shape == "square":
        draw.rectangle((14, 14, 58, 58), fill=colour)
    elif shape == "book":
        draw.polygon([(10, 20), (50, 8), (64, 50), (22, 64)], fill=colour)
        draw.line([(22, 64), (64, 50)], fill="gainsboro", width=5)
    else:
        draw.ellipse((8, 30, 46, 68), fill="steelblue")
        draw.ellipse((50, 6, 64, 20), fill=colour)
    return image


DIFFER_IN_COLOUR = [
    ("square", "#dd2e44", "#78b159"),
    ("square", "#dd2e44", "#c1694f"),
    ("square", "#f4900c", "#55acee"),
    ("square", "#e6e7e8", "#31373d"),
    ("square", "#31373d", "#dd2e44"),
    ("book", "#3b88c3", "#77b255"),
    ("light", "#dd2e44", "#78b159"),
]


@pytest.mark.parametrize(("shape", "colour", "other"), DIFFER_IN_COLOUR)
def test_pictures_that_differ_in_nothing_but_their_colours_are_not_the_same(shape: str, colour: str, other: str) -> None:
    one, two = described(icon(shape, colour)), described(icon(shape, other))
    assert likeness(one, two) < SAME_PICTURE
    assert likeness(two, one) < SAME_PICTURE
    for name in ("larger", "quality 30", "grey", "cut to 95 %"):
        assert likeness(one, described(ALTERED[name](icon(shape, colour)))) > SAME_PICTURE, name


@real
def test_photographs_whose_red_and_blue_are_exchanged_are_other_pictures() -> None:
    images = [decode(file) for file in photographs("sign_digits", 200)]
    for image in images:
        red, green, blue = image.split()
        exchanged = described(ALTERED["all at once"](Image.merge("RGB", (blue, green, red))))
        assert likeness(described(image), exchanged) < SAME_PICTURE


def test_a_copy_is_told_by_its_own_picture_also_where_one_of_other_colours_is_closer_in_greys(tmp_path: Path) -> None:
    samples = []
    drawn = {"red.png": icon("book", "#dd2e44"), "green.png": icon("book", "#609c3f"), "red.jpg": icon("book", "#dd2e44")}
    for split, (name, image) in zip(("test", "train", "train"), drawn.items(), strict=True):
        image.save(tmp_path / name)
        samples.append(Sample(hashlib.md5((tmp_path / name).read_bytes()).hexdigest(), name, split, {"label": None}))
    asked: Any = SimpleNamespace(version=DataVersion("d" * 32, "r" * 40, tuple(samples), tmp_path, ()))
    tested, green, own = samples
    assert [leak.twin for leak in search_job.compare(asked, [(tested, green), (tested, own)], 1).found] == ["red.jpg"]
    assert search_job.compare(asked, [(tested, green)], 1) == Leaks(1, 0, ())


@real
def test_pictures_that_a_real_set_holds_twice_are_found() -> None:
    """The Oxford pets have these pairs, each a copy of other bytes."""
    folder = SHARED / "data" / "pets3" / "images"
    for one, other in [(172, 122), (5, 87), (24, 56), (99, 151)]:
        details = [described(decode(folder / f"Abyssinian_{number}.jpg")) for number in (one, other)]
        assert likeness(*details) > 0.95
    assert likeness(*(described(decode(folder / f"american_bulldog_{number}.jpg")) for number in (130, 125))) < SAME_PICTURE


def test_small_pictures_are_left_out_and_blank_ones_are_like_nothing(tmp_path: Path) -> None:
    assert details_of(Image.new("RGB", (31, 500))) is None
    Image.new("L", (8, 8)).save(tmp_path / "small.bmp")
    Image.new("L", (32, 32)).save(tmp_path / "large.bmp")
    assert [is_comparable(tmp_path / f"{name}.bmp") for name in ("small", "large")] == [False, True]
    white = described(Image.new("RGB", (64, 64), "white"))
    assert likeness(white, white) < 0.5


@pytest.mark.parametrize("shape", [(5,), (5, 3, 3), (4, 5)])
def test_the_nearest_features_are_those_of_an_exact_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    rows, trunk = torch.randn(45, *shape), FeatureStore(tmp_path).trunk("0" * 16)
    keys = [Key(f"{number:032x}") for number in range(45)]
    trunk.write(keys, {"t": rows})
    asked, among = (trunk.open(part, ["t"]) for part in (keys[:10], keys[10:]))
    similarities, positions = neighbours.nearest(asked, among, "t", 4)
    pooled = {1: rows, 3: rows.mean((2, 3)) if rows.ndim == 4 else rows, 2: rows.mean(1)}[len(shape)].numpy()
    distances, expected = NearestNeighbors(n_neighbors=4, metric="cosine").fit(pooled[10:]).kneighbors(pooled[:10])
    assert np.array_equal(positions.numpy(), expected)
    np.testing.assert_allclose(1 - similarities.numpy(), distances, atol=1e-5)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Real photographs, 80 of them in train, 20 in val and 22 in test; of these last seven are altered ones of train or val."""
    folder, samples = tmp_path_factory.mktemp("images"), []
    files = photographs("hymenoptera", 3)[:115]
    planted = [(alter(decode(files[11 * number])), f"{name}.png") for number, (name, alter) in enumerate(ALTERED.items())]
    for number, file in enumerate(files):
        split = "train" if number < 80 else "val" if number < 100 else "test"
        content, label = file.read_bytes(), "ab"["bees" in file.parts]
        (folder / f"{number}.jpg").write_bytes(content)
        samples.append(Sample(hashlib.md5(content).hexdigest(), f"{number}.jpg", split, {"label": label}))
    for image, name in planted:
        image.save(folder / name)
        samples.append(Sample(hashlib.md5((folder / name).read_bytes()).hexdigest(), name, "test", {"label": "a"}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def work_plan_of(version: DataVersion, freeze: str = "all", **guards: Severity) -> WorkPlan:
    plan = Plan.model_validate({"name": "m", "promotion": {"guards": dict.fromkeys(("loads", "latency"), "off") | guards}})
    variant = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),), freeze=freeze, fit=Fit(image_size_px=96))
    work = Work("w1", variant, Weights(hashlib.sha256(MOBILENET.read_bytes()).hexdigest(), MOBILENET))
    return WorkPlan(plan, version, (work,), METRIC, "k")


def table(version: DataVersion, bundle: str, wrong: int) -> ScoreTable:
    """All test images read rightly but for the last ones that are no leaks."""
    tested = sorted((s for s in version.samples if s.split == "test"), key=lambda s: s.file.endswith("png"), reverse=True)
    rows = [
        Scored(s.digest, "label", str(s.labels["label"]), str(s.labels["label"]) if i < len(tested) - wrong else "c", 0.9)
        for i, s in enumerate(tested)
    ]
    return scored(bundle, rows)


def scored(bundle: str, rows: Iterable[Scored]) -> ScoreTable:
    rows = tuple(rows)
    accuracy = sum(row.predicted == row.truth for row in rows) / len(rows)
    return ScoreTable(bundle, "d" * 32, rows, {METRIC: accuracy}, {"label": "classification"})


class Session:
    """A session whose jobs run in this process."""

    def __init__(self, storage: Path, plan: Plan) -> None:
        self.settings, self.plan = SimpleNamespace(root=storage, features=storage / "features"), plan
        self.said: list[str] = []
        self.num_jobs = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def run_job(self, requested: job.Job) -> job.JobOutcome:
        self.num_jobs += 1
        self.begun = read_job(job.write_job(requested))
        return search_job.search(self.begun)


def collect(storage: Path, work_plan: WorkPlan) -> tuple[Trials, Any]:
    session: Any = Session(storage, work_plan.plan)
    candidate = TrainedVariant("w1", work_plan.works[0].variant, False, {}, 1, 1, 1, 1.0)
    return collect_trials(
        session, work_plan, Scores(candidate=candidate, table=table(work_plan.version, "new", 0), bundle=storage / "bundle")
    ), session


@real
def test_a_challenger_that_is_better_but_holds_a_leak_is_told_so(tmp_path: Path, version: DataVersion) -> None:
    work_plan = work_plan_of(version)
    trials, session = collect(tmp_path, work_plan)
    assert trials.leaks is not None
    found = {leak.file.removesuffix(".png"): (leak.twin, leak.split) for leak in trials.leaks.found}
    assert found == {name: (f"{11 * number}.jpg", "train") for number, name in enumerate(ALTERED)}, "all, and no others"
    assert (trials.leaks.num_samples, trials.leaks.num_small) == (22, 0)
    # A rerun of the night reads what was found.
    again, later = collect(tmp_path, work_plan)
    assert (again.leaks, later.num_jobs, session.num_jobs) == (trials.leaks, 0, 1)
    stored = FeatureStore(tmp_path / "features").status()
    assert [(trunk.num_samples, *trunk.taps) for trunk in stored] == [(122, "8:pooled"), (122, "grey")]
    # The champion reads every leak wrongly; the challenger has them by heart, and one sample more.
    old = table(version, "old", 1)
    leaked = {leak.digest for leak in trials.leaks.found}
    champion = scored("old", (replace(row, predicted="c") if row.digest in leaked else row for row in old.rows))
    verdicts = {
        severity: decide(Case(table(version, "new", 0), champion, Policy(METRIC, guards={"leaks": severity}), trials=trials))
        for severity in ("warn", "block", "off")
    }
    assert {severity: verdict.promoted for severity, verdict in verdicts.items()} == {"warn": True, "block": False, "off": True}
    finding = verdicts["warn"].findings[-1]
    assert (finding.guard, finding.passed, finding.blocks) == ("leaks", False, False)
    assert finding.figures == {"num_leaks": 7, "num_samples": 22, "gain_without": pytest.approx(1 / 15)}
    assert any(
        reason.startswith("warning: 7 test images of 22 show a picture of train or val at another size, quality or crop: ")
        and ".png and " in reason
        and "on the other samples the candidate gains +0.067 in accuracy" in reason
        for reason in verdicts["warn"].reasons
    )
    pairs = search_job.find_candidates(session.begun.folder.address, False, 1)
    assert search_job.compare(session.begun, pairs, 3) == trials.leaks, "however many threads compare"


@real
def test_a_search_that_cannot_be_made_costs_no_night(
    tmp_path: Path, version: DataVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, session = collect(tmp_path, work_plan_of(version, "none"))
    assert trials.leaks is None
    assert "no variant of the plan stores features" in session.said[0]
    assert collect(tmp_path, work_plan_of(version, leaks="off"))[1].said == []

    def failing(*_: object) -> None:
        raise HeadstartError("the cluster is gone")

    monkeypatch.setattr(Session, "run_job", failing)
    trials, session = collect(tmp_path, work_plan_of(version))
    assert trials.leaks is None
    assert session.said[-1].endswith("the search failed: the cluster is gone")


def test_images_that_are_all_too_small_need_no_search(tmp_path: Path) -> None:
    samples = []
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.bmp")
        digest = hashlib.md5((tmp_path / f"{number}.bmp").read_bytes()).hexdigest()
        samples.append(Sample(digest, f"{number}.bmp", ("train", "val", "test", "test")[number], {"label": "a"}))
    version = DataVersion("d" * 32, "r" * 40, tuple(samples), tmp_path, ())
    variant = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),), freeze="all")
    plan = Plan.model_validate({"name": "m", "promotion": {"guards": {"loads": "off", "latency": "off"}}})
    trials, session = collect(tmp_path, WorkPlan(plan, version, (Work("w1", variant, Weights("none")),), METRIC, "k"))
    assert trials.leaks == Leaks(2, 2, ())
    assert session.num_jobs == 0
    case = Case(table(version, "new", 0), None, Policy(METRIC, guards={"leaks": "warn"}), {"label": "c"}, trials=trials)
    finding = decide(case).findings[-1]
    assert (finding.guard, finding.passed) == ("leaks", True)
    assert finding.notes == ("2 test images were too small to be compared with those of train",)


def test_more_leaks_than_are_shown_are_counted() -> None:
    found = tuple(Leak(f"d{i}", f"t{i}.png", f"a{i}.png", "train", 1.0) for i in range(5))
    rows = tuple(Scored(f"d{i}", "label", "a", "a", 0.9) for i in range(40))
    case = Case(
        scored("new", rows),
        None,
        Policy(METRIC, guards={"leaks": "block"}),
        {"label": "b"},
        trials=Trials(leaks=Leaks(40, 0, found)),
    )
    verdict = decide(case)
    assert not verdict.promoted
    assert "5 test images of 40 show a picture" in verdict.findings[-1].words
    assert verdict.findings[-1].words.endswith("t2.png and a2.png (train, 1.00) and 2 more")
