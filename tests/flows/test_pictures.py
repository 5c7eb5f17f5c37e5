"""Pictures: that they are drawn whatever the names and numbers, and are as large as a screen takes."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows import pictures
from flows.pictures import confusions, curves
from flows.places import Folder
from flows.work_records import EpochRecord, MaskExample, WorkResult


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").tobytes())) > 8, "the picture is blank"
        return image.size


def _result(**found: Any) -> WorkResult:
    counts = {"num_parameters": 1, "num_trained_parameters": 1, "num_forwarded": 1, "seconds": 1.0}
    nothing: dict[str, Any] = {"work_key": "w1", "metrics": {}, **counts, "epochs": (), "confusion": {}, "classes": {}}
    return WorkResult(**nothing | found)


def _epochs(num: int, num_frozen_stages: int | None = None) -> tuple[EpochRecord, ...]:
    measures = {"train/loss": 0.5, "val/label/loss": 0.6, "val/label/accuracy": 0.9, "val/odd $name/accuracy": 0.8}
    return tuple(EpochRecord(i, i // 2, measures, 1.0, num_frozen_stages) for i in range(num))


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_confusion_matrix_fits_a_screen_with_two_or_a_hundred_classes(num_classes: int) -> None:
    matrix = (np.eye(num_classes, dtype=int) * 9 + 1).tolist()
    width, height = _size(pictures.confusion_matrix(matrix, [f"class {i}" for i in range(num_classes)], "label"))
    assert 300 < height <= width < 2000


def test_class_names_that_look_like_formulas_or_lack_a_glyph_are_drawn() -> None:
    names = ["$\\frac{$", "猫", "a" * 200, "", "$5 & $6"]
    _size(pictures.confusion_matrix(np.eye(5, dtype=int).tolist(), names, "$label"))


def test_a_class_without_samples_does_not_divide_by_zero() -> None:
    _size(pictures.confusion_matrix([[0, 0], [1, 2]], ["a", "b"], "label"))
    _size(pictures.confusion_matrix([[0, 0], [0, 0]], ["a", "b"], "label"))


@pytest.mark.parametrize("num_epochs", [0, 1, 40])
def test_learning_curves_are_drawn_for_none_one_and_many_epochs(num_epochs: int) -> None:
    width, height = _size(pictures.learning_curves(_epochs(num_epochs), 0))
    assert height < width


def test_a_measure_that_is_not_a_number_leaves_a_gap() -> None:
    first, second, third = _epochs(3)
    strange = replace(second, metrics={"train/loss": math.nan, "val/label/accuracy": math.inf})
    _size(pictures.learning_curves([first, strange, third], 2))


@pytest.mark.parametrize("num_frozen", [[0], [5, 5, 2, 0, 1], [], [3] * 200])
def test_a_freeze_map_is_drawn_for_none_one_and_many_epochs(num_frozen: list[int]) -> None:
    width, height = _size(pictures.freeze_map(num_frozen, ["stem", "layer1", "layer2", "layer3", "layer4"], "adaptive"))
    assert 200 < height < width < 1500


def test_a_freeze_map_is_blue_where_a_stage_trains_and_grey_where_it_is_frozen() -> None:
    png = pictures.freeze_map([2, 0], ["stem", "top"], "lp_ft")
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    blue, grey = ((pixels == np.array(colour)).all(axis=2) for colour in ((0x25, 0x63, 0xEB), (0xE4, 0xE7, 0xEB)))
    assert blue.sum() == pytest.approx(grey.sum(), rel=0.1)
    assert np.nonzero(grey)[1].max() < np.nonzero(blue)[1].min(), "epoch 0 is frozen, epoch 1 trains"


def test_a_variant_is_drawn_with_its_freeze_map_where_its_epochs_tell_of_it() -> None:
    result = _result(epochs=_epochs(2, num_frozen_stages=1), variant={"backbone": "resnet18", "freeze": "adaptive"})
    assert set(pictures.draw_variant(result)) == {"learning_curves.png", "freeze_map.png"}
    assert set(pictures.draw_variant(replace(result, epochs=_epochs(2)))) == {"learning_curves.png"}


def test_a_leaderboard_is_drawn_for_one_and_for_a_hundred_variants() -> None:
    assert _size(pictures.leaderboard(["one"], [0.9], "val/label/accuracy", 0))[1] < 300
    assert _size(pictures.leaderboard([f"v{i}" for i in range(100)], [math.nan] + [0.9] * 99, "val/label/accuracy"))[1] < 2500


def test_a_variant_gets_curves_and_a_confusion_matrix_a_target() -> None:
    result = _result(epochs=_epochs(2), best_epoch=1, confusion={"a/b": [[1, 0], [0, 1]]}, classes={"a/b": ["x", "y"]})
    assert set(pictures.draw_variant(result)) == {"learning_curves.png", "confusion_a_b.png"}


MASKED: dict[str, Any] = {
    "variant": {
        "backbone": "resnet18",
        "freeze": "all",
        "heads": [
            {"target": "kind", "task": "classification"},
            {"target": "tags", "task": "multilabel"},
            {"target": "mask", "task": "segmentation"},
        ],
    },
    "work_key": "w1",
    "confusion": {"kind": [[3, 0], [1, 2]], "mask": [[900, 100, 0], [50, 950, 0], [0, 0, 0]]},
    "classes": {"kind": ["a", "b"], "tags": ["x", "y"], "mask": ["0", "7", "200"]},
}


def _three_tasks(num: int) -> tuple[EpochRecord, ...]:
    measures = {"train/loss": 0.5, "train/mask/miou": 0.4}
    for target, names in {
        "kind": ("loss", "accuracy", "f1_macro", "average_precision"),
        "tags": ("loss", "accuracy", "f1_macro", "average_precision"),
        "mask": ("loss", "miou", "dice", "pixel_accuracy"),
    }.items():
        measures |= {f"val/{target}/{name}": 0.7 for name in names}
    return tuple(EpochRecord(i, 0, measures, 1.0) for i in range(num))


def test_learning_curves_draw_each_targets_own_measures() -> None:
    tasks = {head["target"]: head["task"] for head in MASKED["variant"]["heads"]}
    drawn = {measure: {target for _, target in lines} for measure, lines in curves._curves(_three_tasks(2), tasks).items()}
    assert drawn == {
        "loss": {"", "kind", "tags", "mask"},
        "accuracy": {"kind"},
        "f1_macro": {"kind", "tags"},
        "average_precision": {"tags"},
        "miou": {"mask"},
        "dice": {"mask"},
    }
    wide = _size(pictures.learning_curves(_three_tasks(3), 1, tasks))
    alone = _size(
        pictures.learning_curves(_three_tasks(3), 1, {"kind": "segmentation", "tags": "segmentation", "mask": "segmentation"})
    )
    assert alone[0] == wide[0] < 1800, "three panels in a row"
    assert alone[1] < wide[1]


def test_the_matrix_of_a_mask_tells_of_iou_and_shares_instead_of_counts() -> None:
    counts = np.array(MASKED["confusion"]["mask"], dtype=float)
    assert confusions.class_ious(counts.tolist()) == pytest.approx([900 / 1050, 950 / 1100, math.nan], nan_ok=True)
    words = confusions._summary(counts, of_pixels=True)
    assert words == f"mIoU {(900 / 1050 + 950 / 1100) / 2:.3f}, 92.5% of pixels right"
    assert confusions._summary(np.zeros((2, 2)), of_pixels=True) == "no pixels"
    assert [confusions._percent(share) for share in (0.0, 0.004, 0.25, 1.0)] == ["0%", "<1%", "25%", "100%"]
    by_share = pictures.confusion_matrix(counts.tolist(), ["0", "7", "200"], "mask", of_pixels=True)
    assert by_share != pictures.confusion_matrix(counts.tolist(), ["0", "7", "200"], "mask")
    _size(by_share)


@pytest.mark.parametrize("num_classes", [2, 32, 200])
def test_iou_bars_fit_a_screen_and_leave_absent_classes_empty(num_classes: int) -> None:
    matrix = np.eye(num_classes, dtype=int) * 5
    matrix[0, 0] = 0
    assert 150 < _size(pictures.iou_bars(matrix.tolist(), [str(n) for n in range(num_classes)], "mask"))[1] < 2500
    _size(pictures.iou_bars([[0, 0], [0, 0]], ["a", "b"], "mask"))


def test_examples_of_masks_are_drawn_where_their_pictures_lie(tmp_path: Path) -> None:
    (tmp_path / "w1").mkdir()
    rows = []
    for number, size in enumerate([(64, 48), (30, 60)]):
        files = {kind: f"{number}-{kind}.png" for kind in ("image", "truth", "told")}
        for shade, file in enumerate(files.values()):
            Image.new("RGB", size, (80 * shade, 200, 10)).save(tmp_path / "w1" / file)
        rows.append(MaskExample("mask", "images/$a_1.png", right=0.5, colours={"0": "#000000", "7": "#ff0000"}, **files))
    result = _result(**MASKED, epochs=_three_tasks(2), examples=tuple(rows))
    plain = {"learning_curves.png", "confusion_kind.png", "confusion_mask.png", "iou_mask.png"}
    assert set(pictures.draw_variant(result)) == plain
    drawn = pictures.draw_variant(result, Folder(tmp_path))
    assert set(drawn) == plain | {"examples_mask.png"}
    assert 800 < _size(drawn["examples_mask.png"])[0] < 1300
    (tmp_path / "w1" / "1-told.png").unlink()
    assert set(pictures.draw_variant(result, Folder(tmp_path))) == plain


def test_drawing_needs_no_screen_and_no_global_figures() -> None:
    # In a process of its own: other tests' libraries import pyplot.
    drawn = "import sys; from flows import pictures; pictures.leaderboard(['one'], [0.9], 'loss')"
    subprocess.run([sys.executable, "-c", f"{drawn}; assert 'matplotlib.pyplot' not in sys.modules"], check=True)
