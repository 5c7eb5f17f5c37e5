"""Planted challengers through the real promote stage, registry and ledger: each gets the right verdict, by the right finding."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows import job
from flows.gate import Account, Case, Policy, decide
from flows.job.holdout.scores import write_scores
from flows.model_version import ModelVersion
from flows.pictures import sample_images
from flows.plan import Plan
from flows.records import DataVersion, Sample, ScoreTable, TrainedVariant
from flows.stages.reporting.flips import flip_pictures
from flows.stages.values import Scores, WorkPlan
from heads.spec import Head, Variant
from heads.tasks.rows import Scored
from tests.flows import test_promotion
from tests.flows.test_promotion import METRIC, Nights

NUM, CLASSES, GROUPS = 1200, ("cat", "dog", "fox", "owl"), ("east", "north", "south", "west")
RANDOM = np.random.default_rng(0)
TRUTHS, SITES = RANDOM.integers(0, 4, NUM), RANDOM.integers(0, 4, NUM)
CHAMPION = RANDOM.random(NUM) < 0.85

Right = NDArray[np.bool_]


def fixes(share: float, breaks: float = 0.01) -> Right:
    """What a challenger reads rightly that fixes this share of the champion's mistakes, and makes others."""
    drawn = np.random.default_rng(1).random(NUM)
    return np.where(CHAMPION, drawn >= breaks, drawn < share)


def but(right: Right, where: Right, share: float) -> Right:
    return np.where(where, np.random.default_rng(2).random(NUM) < share, right)


# A challenger: what it reads rightly, how sure it is, and the guards that it should not pass.
PLANTED: dict[str, tuple[Callable[[], Right], float | None, set[str]]] = {
    "equal": (lambda: fixes(0.06, 0.011), None, {"paired_test"}),
    "worse": (lambda: fixes(0.0, 0.02), None, {"paired_test", "min_gain"}),
    "better": (lambda: fixes(0.6), None, set()),
    "better but for a class": (lambda: but(fixes(0.9, 0.0), TRUTHS == 2, 0.74), None, {"worst_class"}),
    "better but for a group": (lambda: but(fixes(0.9, 0.0), SITES == 2, 0.74), None, {"worst_group"}),
    "better but over-confident": (lambda: fixes(0.3, 0.0), 0.99, {"calibration"}),
    "better but unlike": (lambda: fixes(0.9, 0.09), None, {"negative_flips"}),
}


def table_of(folder: Path, key: str, right: Right, sure: float | None) -> ScoreTable:
    told = sure or float(right.mean())
    cells = [(CLASSES[n], CLASSES[n if ok else (n + 1) % 4]) for n, ok in zip(TRUTHS, right, strict=True)]
    rows = tuple(Scored(f"{i:032x}", "label", *pair, told) for i, pair in enumerate(cells))
    table = ScoreTable(key * 8, "d1", rows, {METRIC: float(right.mean())}, {"label": "classification"})
    write_scores(job.scores_file(folder, table.bundle_digest, "d1"), table)
    return table


@pytest.fixture(scope="module")
def reign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose model has a champion."""
    folder = tmp_path_factory.mktemp("reign")
    with pytest.MonkeyPatch.context() as patched:
        nights = Nights(folder, patched)
        assert nights.judge(
            "00000001", table_of(folder, "00000001", CHAMPION, None), promotion={"guards": UNTRIED}
        ).verdict.promoted
    return folder


@pytest.fixture
def nights(reign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    shutil.copytree(reign, tmp_path / "reign")
    groups = tuple(Sample(f"{i:032x}", f"{i}.png", "test", {"label": "cat"}, GROUPS[site]) for i, site in enumerate(SITES))
    monkeypatch.setattr(test_promotion, "SAMPLES", (*test_promotion.SAMPLES, *groups))
    nights = Nights(tmp_path / "reign", monkeypatch)
    nights.now += 1
    return nights


def aliases(nights: Nights) -> dict[str, str]:
    return {alias: version.version for alias, version in nights.registry.current("m").items()}


# These candidates have no bundles that could be tried.
UNTRIED = dict.fromkeys(("loads", "latency", "leaks"), "off")
BLOCK = UNTRIED | dict.fromkeys(("worst_class", "worst_group", "calibration", "negative_flips"), "block")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_challenger_gets_its_verdict_by_its_finding(nights: Nights, name: str) -> None:
    draw, sure, refused = PLANTED[name]
    verdict = nights.judge("00000002", table_of(nights.folder, "00000002", draw(), sure), promotion={"guards": BLOCK}).verdict
    assert {one.guard for one in verdict.findings if not one.passed} == refused
    assert {"worst_class", "worst_group", "calibration", "negative_flips"} <= {one.guard for one in verdict.findings}
    assert verdict.promoted == (not refused)
    assert aliases(nights) == ({"champion": "1", "challenger": "2"} if refused else {"champion": "2", "previous": "1"})
    entry = nights.registry.history("m")[-1]
    assert (entry.findings, entry.reasons, entry.promoted) == (verdict.findings, verdict.reasons, verdict.promoted)


def test_what_only_warns_is_said_and_keeps_nothing_from_promotion(nights: Nights) -> None:
    draw, sure, _ = PLANTED["better but for a group"]
    verdict = nights.judge("00000002", table_of(nights.folder, "00000002", draw(), sure), promotion={"guards": UNTRIED}).verdict
    assert verdict.promoted
    warning = next(reason for reason in verdict.reasons if reason.startswith("warning: "))
    assert warning.startswith("warning: worse accuracy than champion 1 on 1 group (at 5%, by Holm's rule over 4): south 0.")
    assert aliases(nights) == {"champion": "2", "previous": "1"}


def test_the_surest_flips_are_shown_where_the_verdict_tells_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = []
    for number in range(12):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 300 if number else 40, 3), 20 * number, np.uint8)).save(file)
        samples.append(Sample(hashlib.md5(file.read_bytes()).hexdigest(), file.name, "test", {"label": "cat"}))
    version = DataVersion("d1", "r", tuple(samples), tmp_path, ())
    old, new = (
        ScoreTable(
            guess, "d1", tuple(Scored(s.digest, "label", "cat", guess, n / 20) for n, s in enumerate(samples)), {METRIC: 1.0}
        )
        for guess in ("cat", "dog")
    )
    variant = Variant(backbone="resnet18", heads=(Head(target="label"),))
    candidate = TrainedVariant("k", variant, False, {}, 1, 1, 1, 1.0)
    champion = ModelVersion("m", "1", (), {}, 0.0)
    work_plan = WorkPlan(Plan(name="m"), version, (), METRIC, "k")
    shown: list[tuple[str, Image.Image]] = []

    def draw(images: list[tuple[str, Image.Image]], title: str) -> bytes:
        shown.extend(images)
        return sample_images(images, title)

    monkeypatch.setattr("flows.pictures.sample_images", draw)
    (tmp_path / "10.png").unlink()
    scores = Scores(candidate=candidate, table=new, champion=champion, champion_table=old)
    verdict = decide(Case(new, old, Policy(METRIC, guards={"negative_flips": "warn"})))
    pictures = flip_pictures(work_plan, scores, verdict)
    with Image.open(io.BytesIO(pictures["negative_flips.png"])) as drawn:
        assert drawn.size[0] > 500
    # The surest eight, the surest first, but for a file that is gone, and none larger than need be.
    assert [words for words, _ in shown] == [f"cat as dog, {n / 20:.2f}" for n in (11, 9, 8, 7, 6, 5, 4)]
    assert [image.getpixel((0, 0)) for _, image in shown] == [(20 * n,) * 3 for n in (11, 9, 8, 7, 6, 5, 4)]
    assert max(image.width for _, image in shown) == 256
    silent = decide(Case(new, old, Policy(METRIC, guards={"negative_flips": "warn"}), account=Account(1, 1.0)))
    assert flip_pictures(work_plan, scores, silent) == {}, "between looks nothing is shown of the holdout"
