"""A class, labels and a mask in one plan, by the public command: trained, shown, read, and found done the next time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_IMAGES = 72
IGNORED = 255

PLAN = """
name: shapes
targets:
  - {column: kind}
  - {column: tags}
  - {column: mask, ignore: [255]}
backbones: [squeezenet1_1]
weights: none
heads: [linear, unet]
freeze: [none]
fit: {epochs: 5, batch_size: 12, learning_rate: 0.003, image_size_px: 48, augment: none, seed: 0, warmup: 0}
promotion: {metric: mask/miou}
"""


def draw(index: int) -> tuple[Image.Image, Image.Image, str]:
    """A disc or a square by parity, its mask (value 9, its rim ignored), and its labels."""
    width, height = (64, 48) if index % 3 else (49, 57)
    random = np.random.default_rng(index)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j] + random.uniform(-0.2, 0.2, (2, 1, 1))
    distance = np.hypot(rows, columns) if index % 2 == 0 else np.maximum(abs(rows), abs(columns))
    red, light = index // 2 % 2, index // 4 % 2
    colour = np.array([255, 60, 60] if red else [60, 160, 255])
    pixels = np.where((distance < 0.6)[..., None], colour, 120 * light) + random.normal(0, 8, (height, width, 3))
    mask = np.where(distance < 0.6, 9, 0)
    mask[abs(distance - 0.6) < 0.03] = IGNORED
    tags = "|".join([*(["red"] if red else ["blue"]), *(["light"] if light else [])])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask.astype(np.uint8)), tags


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the drawn shapes and `plan.yaml`; some cells of every column are empty."""
    folder = tmp_path_factory.mktemp("shapes")
    source, workspace = folder / "source", Workspace(folder / "workspace")
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    lines = ["file,kind,tags,mask,split"]
    for index in range(NUM_IMAGES):
        image, mask, tags = draw(index)
        image.save(source / "images" / f"{index}.png")
        mask.save(source / "masks" / f"{index}.png")
        kind = "" if index % 11 == 5 else ("disc", "square")[index % 2]
        split = ("train", "train", "train", "val", "test")[index // 2 % 5]
        lines.append(
            f"{index}.png,{kind},{'' if index % 7 == 3 else tags},{'' if index % 9 == 4 else f'masks/{index}.png'},{split}"
        )
    (source / "labels.csv").write_text("\n".join(lines))
    workspace.folder.mkdir()
    workspace.run("init", ".")
    workspace.run("data", "ingest", str(source))
    (workspace.folder / "plan.yaml").write_text(PLAN)
    return workspace


@pytest.fixture(scope="module")
def report(shapes: Workspace) -> dict[str, Any]:
    """The report of the one retraining."""
    return shapes.json("retrain", "plan.yaml")


def test_a_plan_tells_the_three_heads_before_anything_runs(shapes: Workspace) -> None:
    told = shapes.json("plan", "plan.yaml", "--no-calibrate")
    assert [variant["heads"] for variant in told["variants"]] == [{"kind": "linear", "mask": "unet", "tags": "linear"}]
    assert "kind linear + mask unet + tags linear" in told["variants"][0]["label"]
    assert told["metric"] == "mask/miou"


def test_a_retraining_measures_every_head_and_promotes_by_the_mask(report: dict[str, Any]) -> None:
    measured = report["variants"][0]["metrics"]
    assert {"val/mask/miou", "val/mask/iou_0", "val/mask/iou_9", "val/tags/average_precision", "val/kind/accuracy"} <= set(
        measured
    )
    assert {"mask/miou", "mask/pixel_accuracy", "tags/f1_macro", "kind/accuracy", "kind/loss"} <= set(report["holdout"])
    assert report["tasks"] == {"kind": "classification", "mask": "segmentation", "tags": "multilabel"}
    assert report["metric"] == "mask/miou"
    assert report["holdout"]["mask/miou"] > 0.6
    assert report["verdict"]["promoted"], report["verdict"]
    assert report["model"]["aliases"] == ["champion"]


def test_models_show_tells_the_holdout_a_line_a_target(shapes: Workspace, report: dict[str, Any]) -> None:
    told = shapes.json("models", "show", "shapes")
    assert told["champion"]["metrics"] == pytest.approx(report["holdout"])
    screen = shapes.run("models", "show", "shapes")
    for start in ("kind: accuracy", "mask: miou", "tags: accuracy"):
        assert start in screen


def test_predict_writes_masks_of_the_images_size_and_tells_classes_and_labels(
    shapes: Workspace, report: dict[str, Any], tmp_path: Path
) -> None:
    images = [draw(index)[0] for index in (100, 102, 103)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    told = shapes.json("predict", "shapes@champion", str(tmp_path), "--output", str(tmp_path / "masks"))["predictions"]
    assert [Path(one["file"]).name for one in told] == ["0.png", "1.png", "2.png"]
    right = []
    for number, one in enumerate(told):
        assert set(one) == {"file", "kind", "tags", "mask"}
        assert one["kind"]["label"] in ("disc", "square")
        assert set(one["tags"]["probabilities"]) == {"blue", "light", "red"}
        assert set(one["tags"]["labels"]) <= {"blue", "light", "red"}
        assert sum(one["mask"]["shares"].values()) == pytest.approx(1)
        with Image.open(one["mask"]["mask"]) as mask:
            values = np.asarray(mask)
        assert values.shape == images[number].size[::-1]
        assert set(np.unique(values).tolist()) <= {0, 9}, "the values are those of the masks that were learned from"
        truth = np.asarray(draw((100, 102, 103)[number])[1])
        right.append((values == truth)[truth != IGNORED].mean())
    assert np.mean(right) > 0.8
    screen = shapes.run("predict", "shapes@champion", str(tmp_path / "0.png"), "--output", str(tmp_path / "more"))
    assert "0.png" in screen
    assert "9:" in screen, "how much of the image each value fills"


def test_mlflow_holds_the_pictures_of_every_head(shapes: Workspace, report: dict[str, Any]) -> None:
    with sqlite3.connect(shapes.storage / "mlflow.db") as database:
        run_id = report["variants"][0]["run_id"]
        (place,) = database.execute(f"select artifact_uri from runs where run_uuid = '{run_id}'").fetchone()
    found = {path.name for path in shapes.storage.rglob(f"*{Path(place).parent.name}/artifacts/pictures/*.png")}
    assert found == {
        "learning_curves.png",
        "freeze_map.png",
        "confusion_kind.png",
        "confusion_mask.png",
        "iou_mask.png",
        "examples_mask.png",
    }


def test_the_same_plan_again_finds_everything_done_and_says_how_every_head_does(
    shapes: Workspace, report: dict[str, Any]
) -> None:
    (result,) = shapes.storage.glob("work/*/result.json")
    before = result.stat().st_mtime_ns
    screen = shapes.run("retrain", "plan.yaml")
    assert report["baseline"]["note"] == "masks have no probe"
    assert 0 < report["baseline"]["metrics"]["val/mask/miou"] < 0.6
    for words in (
        "baseline (majority)",
        "Baseline: majority, val/mask/miou",
        "mask/miou",
        "tags/average_precision",
        "kind/accuracy",
        "- mask: miou",
        "--output",
    ):
        assert words in screen
    assert result.stat().st_mtime_ns == before
    with sqlite3.connect(shapes.storage / "mlflow.db") as database:
        assert database.execute("select count(*) from model_versions").fetchall() == [(1,)]
