"""Models that share a frozen trunk are scored by one pass through it, and each as if it were scored alone."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flows import job
from flows.job.holdout.scores import read_scores
from flows.job.holdout.scoring import score
from flows.places import Folder, StoredFile
from flows.records import DataVersion, Mask, Sample, Workers
from flows.workspace import md5_of
from heads import bundle
from heads.data.modalities import preparation_of, preprocess_of
from heads.model.model import Model, build_model
from heads.spec import Fit, Head, Variant
from tests.heads.encoders import SIZE, write_encoder

NUM_SAMPLES = 70
KIND, MARKS = Head(target="kind"), Head(target="marks", task="multilabel", design="mlp")
CLASSES = {"kind": ("x", "y"), "marks": ("a", "b"), "area": ("0", "9"), "tags": ("O", "B-thing", "I-thing")}
Heads = tuple[Head, ...]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each pass through a backbone had."""
    counts: list[int] = []
    forward = Model.forward_backbone

    def counted(self: Model, inputs: Tensor | Mapping[int, Tensor], also: Any = ()) -> dict[int, Tensor]:
        counts.append(len(inputs))
        return forward(self, inputs, also)

    monkeypatch.setattr(Model, "forward_backbone", counted)
    return counts


def pictures(folder: Path) -> DataVersion:
    (folder / "masks").mkdir(parents=True)
    samples, masks = [], {}
    for number in range(NUM_SAMPLES):
        random = np.random.default_rng(number)
        file, mask = folder / f"{number}.png", f"masks/{number}.png"
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file)
        Image.fromarray(random.choice(np.uint8([0, 9]), (40, 36))).save(folder / mask)
        masks[mask] = Mask(md5_of(folder / mask), {0: 720, 9: 720})
        labels = {"kind": "xy"[number % 2], "marks": ("a", "a|b", "")[number % 3], "area": mask if number % 5 else None}
        samples.append(Sample(md5_of(file), file.name, "test", labels))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, (), masks)


def sentences(folder: Path) -> DataVersion:
    (folder / "texts").mkdir(parents=True)
    words, samples = ("red", "house", "a", "cars", "tree!", "blue"), []
    for number in range(NUM_SAMPLES):
        told = np.random.default_rng(number).choice(words, 1 + number * 7 % 40)
        file = folder / "texts" / f"{number}.txt"
        file.write_text(" ".join(told))
        tags = " ".join("B-thing" if word == "house" else "O" for word in told)
        labels = {"kind": "xy"[number % 2], "marks": ("a", "a|b", "")[number % 3], "tags": tags if number % 5 else None}
        samples.append(Sample(md5_of(file), f"texts/{file.name}", "test", labels))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def save(storage: Path, name: str, variant: Variant, weights: Path | None = None, *, moves: bool = False) -> str:
    """A bundle of a variant, with heads by its name; its backbone is not that of the weights if it `moves`."""
    classes = {head.target: CLASSES[head.target] for head in variant.heads}
    model = build_model(variant, classes, weights)
    torch.manual_seed(len(name))
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if moves:
        last = list(model.backbone.parameters())[-1]
        last.data.view(-1)[0] += 1e-3
    vocabulary = preparation_of(variant.backbone).vocabulary_of(variant, weights, [])
    bundle.save(
        storage / name,
        model=model,
        variant=variant,
        classes=classes,
        preprocess=preprocess_of(variant),
        facts={"name": name},
        thresholds={"marks": (0.4, 0.6)} if "marks" in classes else None,
        temperatures={"kind": 1.7} if "kind" in classes else None,
        vocabulary=vocabulary,
    )
    return name


def images_of(storage: Path) -> Callable[..., str]:
    def made(name: str, *heads: Head, freeze: str = "all", moves: bool = False, size: int = 32) -> str:
        fit = Fit(image_size_px=size)
        return save(storage, name, Variant(backbone="mobilenet_v2", heads=heads, freeze=freeze, fit=fit), moves=moves)

    return made


def texts_of(storage: Path, encoder: Path) -> Callable[..., str]:
    def made(name: str, *heads: Head, freeze: str = "all", moves: bool = False, size: int = 16, **fit: Any) -> str:
        variant = Variant(backbone=SIZE.name, heads=heads, freeze=freeze, fit=Fit(max_tokens=size, **fit))
        return save(storage, name, variant, encoder, moves=moves)

    return made


def tables(storage: Path, version: DataVersion, *names: str) -> tuple[dict[str, bytes], int]:
    """The bytes of the score table of each bundle, by name, and how many samples were forwarded by the outcome's word."""
    outcome = score(job.Job("score", "k", "x", storage, version, CLASSES, Workers(), bundles=names))
    assert outcome.scores
    found = {name: Path(file).read_bytes() for name, file in outcome.scores.items()}
    for file in outcome.scores.values():
        Path(file).unlink()
    return found, outcome.num_forwarded


def check(storage: Path, version: DataVersion, forwarded: list[int], names: list[str], num_groups: int) -> None:
    together, told = tables(storage, version, *names)
    assert told == sum(forwarded) == num_groups * NUM_SAMPLES, "a trunk runs once a sample, whatever heads read it"
    forwarded.clear()
    alone = {name: tables(storage, version, name)[0][name] for name in names}
    assert sum(forwarded) == len(names) * NUM_SAMPLES
    assert together == alone, "to the bit"
    assert len(set(alone.values())) == len(names)


def test_images_run_once_through_the_backbone_that_bundles_share(tmp_path: Path, forwarded: list[int]) -> None:
    version, made = pictures(tmp_path / "data"), images_of(tmp_path)
    fcn, unet = (Head(target="area", task="segmentation", design=design) for design in ("fcn", "unet"))
    classes = [made("linear", KIND), made("two", KIND, MARKS)]
    # They see whole images, and read them at other stages.
    masks = [made("mask", fcn), made("mask-and-class", unet, KIND)]
    tuned = [made("tuned", KIND, freeze="none", moves=True), made("other-size", KIND, size=48)]
    check(tmp_path, version, forwarded, [*classes, *masks, *tuned], 4)


def test_texts_run_once_through_the_encoder_that_bundles_share(tmp_path: Path, forwarded: list[int]) -> None:
    version, made = sentences(tmp_path / "data"), texts_of(tmp_path, write_encoder(tmp_path / "encoder"))
    tags, chain = (Head(target="tags", task="tagging", design=design) for design in ("linear", "crf"))
    shared = [made("linear", KIND), made("two", KIND, MARKS, pooling="attention"), made("tags", tags), made("all", chain, KIND)]
    alone = [made("tuned", KIND, freeze="none", moves=True), made("longer", KIND, size=24)]
    check(tmp_path, version, forwarded, [*shared, *alone], 3)


def test_what_is_scored_already_is_not_forwarded_again(tmp_path: Path, forwarded: list[int]) -> None:
    version, made = pictures(tmp_path / "data"), images_of(tmp_path)
    order = job.Job("score", "k", "x", tmp_path, version, CLASSES, Workers(), bundles=(made("one", KIND), made("two", MARKS)))
    first = score(replace(order, bundles=("one",)))
    assert score(order).num_forwarded == sum(forwarded) - NUM_SAMPLES == NUM_SAMPLES
    assert score(order).num_forwarded == 0
    assert first.scores
    assert (score(order).scores or {})["one"] == first.scores["one"]


@pytest.mark.parametrize("modality", ["images", "texts"])
def test_threads_that_score_parts_of_the_holdout_tell_what_one_tells(
    tmp_path: Path, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = pictures(tmp_path / "data") if modality == "images" else sentences(tmp_path / "data")
    made = images_of(tmp_path) if modality == "images" else texts_of(tmp_path, write_encoder(tmp_path / "encoder"))
    names, files, threads = (made("linear", KIND), made("two", KIND, MARKS)), [], set[str]()
    forward, together = Model.forward_backbone, threading.Barrier(1)

    def forward_noted(self: Model, inputs: Any, also: Any = ()) -> Any:
        if (name := threading.current_thread().name) not in threads:
            threads.add(name)
            # A thread that is done with its part before another begins would take that one's, too.
            together.wait(30)
        return forward(self, inputs, also)

    monkeypatch.setattr(Model, "forward_backbone", forward_noted)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for count in (1, 3):
        threads.clear()
        together = threading.Barrier(count)
        asked = job.Job("score", "k", "x", tmp_path / str(count), version, CLASSES, Workers(count=count), bundles=names)
        for name in names:
            shutil.copytree(tmp_path / name, tmp_path / str(count) / name)
        outcome = score(asked)
        assert (len(threads), outcome.num_forwarded) == (count, NUM_SAMPLES)
        files.append(outcome.scores or {})
    if modality == "images":
        threads.clear()
        together = threading.Barrier(1)
        mask = made("mask", Head(target="area", task="segmentation", design="fcn"))
        score(replace(asked, storage=tmp_path, bundles=(mask,)))
        assert len(threads) == 1, "masks of an image's size, several at once, could fill the memory"
    for name in names:
        one, many = (read_scores(StoredFile(Folder(Path(each[name]).parent), Path(each[name]).name)) for each in files)
        assert [replace(row, probability=0.0, probabilities={}) for row in one.rows] == [
            replace(row, probability=0.0, probabilities={}) for row in many.rows
        ]
        assert [row.probability for row in many.rows] == pytest.approx([row.probability for row in one.rows], abs=1e-5)
        assert many.metrics["kind/accuracy"] == one.metrics["kind/accuracy"]
        assert many.metrics["kind/loss"] == pytest.approx(one.metrics["kind/loss"], abs=1e-5)


def test_a_batch_of_texts_holds_texts_of_like_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, made = sentences(tmp_path / "data"), texts_of(tmp_path, write_encoder(tmp_path / "encoder"))
    loaded = bundle.load(tmp_path / made("linear", KIND, size=64))
    texts = [(version.data / sample.file).read_text() for sample in version.samples]
    shapes: list[torch.Size] = []
    forward = Model.forward_backbone
    monkeypatch.setattr(
        Model, "forward_backbone", lambda self, ids, also=(): shapes.append(ids.shape) or forward(self, ids, also)
    )
    answers = loaded.predict(texts, batch_size=10)
    lengths = sorted(len(loaded.vocabulary.encode(text, 64)) for text in texts)  # type: ignore[union-attr]
    assert shapes == [(10, max(lengths[start : start + 10])) for start in range(0, NUM_SAMPLES, 10)]
    for text, answer in zip(texts, answers, strict=True):
        alone = loaded.predict([text])[0]["kind"]
        assert answer["kind"].probabilities == pytest.approx(alone.probabilities, abs=1e-5)  # type: ignore[union-attr]
