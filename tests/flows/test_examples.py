"""Examples of a finished variant: small pictures of some validation images, what is true of them and what was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.job.training.examples import IGNORED, save_examples
from flows.pictures import draw_variant
from flows.places import open_place
from flows.records import DataVersion, Mask, Sample
from flows.work_records import WorkResult
from flows.workspace import md5_of
from heads import bundle
from heads.data.image_transforms import preprocess_for
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant

VARIANT = Variant(
    backbone="squeezenet1_1",
    heads=(Head(target="kind"), Head(target="a/b", task="segmentation", design="lraspp", ignore=(255,))),
    fit=Fit(image_size_px=32),
)
CLASSES = {"kind": ["x", "y"], "a/b": ["0", "9"]}


@pytest.fixture
def version(tmp_path: Path) -> DataVersion:
    """Seven validation images of 300 x 90 px, the second without a mask, and one of train."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "masks").mkdir()
    samples, masks = [], {}
    for number in range(8):
        image, mask = f"images/{number}.png", f"masks/{number}.png"
        Image.new("RGB", (300, 90), (30 * number, 200, 7)).save(data / image)
        values = np.full((90, 300), 9, dtype=np.uint8)
        values[:, :100], values[:30] = 0, 255
        Image.fromarray(values).save(data / mask)
        masks[mask] = Mask(md5_of(data / mask), {0: 6000, 9: 12000, 255: 9000})
        split = "train" if number == 7 else "val"
        samples.append(Sample(md5_of(data / image), image, split, {"kind": "x", "a/b": None if number == 1 else mask}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), data, (), masks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    model = build_model(VARIANT, CLASSES, None)
    preprocess = preprocess_for(VARIANT.backbone, 32, whole=True)
    bundle.save(tmp_path / "w1" / "bundle", model=model, variant=VARIANT, classes=CLASSES, preprocess=preprocess, facts={})
    return tmp_path / "w1"


def test_examples_are_masked_validation_images_and_tell_what_the_bundle_tells(folder: Path, version: DataVersion) -> None:
    rows = save_examples(folder, folder / "bundle", version, VARIANT.heads)
    assert [row.file for row in rows] == ["images/0.png", "images/2.png", "images/4.png", "images/5.png"]
    assert {row.target for row in rows} == {"a/b"}
    made = bundle.load(folder / "bundle")
    for row in rows:
        told = made.predict([version.data / row.file])[0]["a/b"].mask
        truth = np.asarray(Image.open(version.data / row.file.replace("images", "masks")))
        assert row.right == pytest.approx((told == truth)[truth != 255].mean())
        assert set(row.colours) == {"0", "9"}, "ignored values are no class"
        pictures = {kind: Image.open(folder / getattr(row, kind)).convert("RGB") for kind in ("image", "truth", "told")}
        assert {picture.size for picture in pictures.values()} == {(256, 77)}
        found = {colour for _, colour in pictures["truth"].getcolors()}
        nine = tuple(bytes.fromhex(row.colours["9"][1:]))
        assert found == {IGNORED, (0, 0, 0), nine}, "no colour between two classes"
    counts = {"num_parameters": 1, "num_trained_parameters": 1, "num_forwarded": 1, "seconds": 1.0}
    about: Any = {"work_key": "w1", "variant": VARIANT.model_dump(mode="json"), "metrics": {}, **counts}
    result = WorkResult(**about, epochs=(), confusion={}, classes={}, examples=tuple(rows))
    assert "examples_a_b.png" in draw_variant(result, open_place(folder.parent))


def test_without_masks_there_are_no_examples(folder: Path, version: DataVersion) -> None:
    assert save_examples(folder, folder / "nowhere", version, VARIANT.heads[:1]) == []
    unlabelled = DataVersion("d" * 32, "r" * 40, version.samples[1:2], version.data, (), version.masks)
    assert save_examples(folder, folder / "bundle", unlabelled, VARIANT.heads) == []
    assert len(save_examples(folder, folder / "bundle", version, VARIANT.heads, count=1)) == 1
