"""The folder that a consumer pulls: written whole, verified by digests before anything in it is read, ready to predict."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from heads.bundle.card import write_card
from heads.bundle.contents import FILES, SUMS, TEXTS, VOCABULARY, Contents, are_files, digest_of, opened, parse_json
from heads.bundle.sample_inputs import READERS, SampleInput, batches
from heads.bundle.weights import read_model
from heads.catalogue import TASK_FACTS
from heads.data.modalities import preparation_of
from heads.data.samples import Preprocess
from heads.data.wordpiece import Vocabulary, parse_vocabulary
from heads.errors import BundleError, HeadsError
from heads.model.model import Model
from heads.model.precision import place_model
from heads.spec import Head, Variant
from heads.tasks.answers import Answer, Extent, Labels, MaskPrediction, Prediction, TagsPrediction
from heads.tasks.bio import check_names
from heads.tasks.table import TASKS
from heads.tasks.temperature import read_temperatures, tempered

__all__ = [
    "FILES",
    "SUMS",
    "VOCABULARY",
    "Answer",
    "Bundle",
    "Labels",
    "MaskPrediction",
    "Prediction",
    "TagsPrediction",
    "are_files",
    "digest",
    "load",
    "names_of",
    "save",
    "verify",
]

FORMAT = 1
# How much of a parser's complaint is passed on: it may quote what it was given.
MAX_QUOTED_CHARS = 500


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified model with all it takes to predict; `facts` say where it comes from.

    `thresholds` are, by target of label sets, the probabilities from which on each label is predicted; `temperatures` are, by
    target, what its logits are divided by before they become probabilities, 1 if it is not there. `vocabulary` are the words
    that a model of texts knows.
    """

    model: Model = field(repr=False)
    variant: Variant
    classes: Mapping[str, tuple[str, ...]]
    preprocess: Preprocess
    facts: Mapping[str, Any]
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    vocabulary: Vocabulary | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its heads, one a target."""
        return self.variant.heads

    def predict(self, samples: Sequence[SampleInput], batch_size: int = 32) -> list[dict[str, Answer]]:
        """For each sample, in order, an answer by target: a Prediction, Labels, a MaskPrediction of an image's own size, or
        a TagsPrediction.

        An image is a file's path, a file's bytes, a Pillow image, or an array of uint8 (H, W, 3) in RGB. A text is a string, the
        path of a file as a Path, or a file's bytes. Raises ImageError or TextError, naming the sample, if one cannot be read;
        nothing is predicted then.
        """
        reader = READERS[self.variant.modality]
        if reader.is_one(samples):
            raise HeadsError(f"predict takes a list of {reader.PLURAL} and was given one {type(samples).__name__}; put it in [ ]")
        if batch_size < 1:
            raise HeadsError(f"batch_size is {batch_size}; it must be 1 or more")
        named = ((sample, f"{reader.PLURAL}[{index}]") for index, sample in enumerate(samples))
        return [answers for batch in batches(named, batch_size) for answers in self._predict_batch(batch)]

    def _predict_batch(self, batch: list[tuple[SampleInput, str]]) -> list[dict[str, Answer]]:
        device, reader = next(self.model.parameters()).device, READERS[self.variant.modality]
        self.model.eval()
        with torch.inference_mode():
            opened = [reader.open(sample, name) for sample, name in batch]
            finds_words = any(TASK_FACTS[head.task].tells == "tags" for head in self.variant.heads)
            logits = self.model(reader.collate(opened, self.preprocess, self.vocabulary, device, finds_words=finds_words))
            rows = [{target: outputs[row] for target, outputs in logits.items()} for row in range(len(opened))]
            return [self._read(reader.extent_of(sample), row) for sample, row in zip(opened, rows, strict=True)]

    def _read(self, extent: Extent, logits: Mapping[str, Tensor]) -> dict[str, Answer]:
        return {
            head.target: TASKS[head.task].answer(
                self.classes[head.target],
                tempered(logits[head.target], self.temperatures.get(head.target)),
                extent,
                self.thresholds.get(head.target),
            )
            for head in self.variant.heads
        }


def save(
    dest: Path,
    *,
    model: Model,
    variant: Variant,
    classes: Mapping[str, Sequence[str]],
    preprocess: Preprocess,
    facts: Mapping[str, Any],
    thresholds: Mapping[str, Sequence[float]] | None = None,
    temperatures: Mapping[str, float] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Path:
    """Writes a bundle to the folder `dest`, which appears whole by rename, in place of one that was there; gives `dest`.

    `thresholds` and `temperatures` are those of `Bundle`. `facts` are JSON values that say where weights and data come from;
    `metrics` among them becomes the card's table. Equal arguments give equal bytes.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = {"format": FORMAT, "variant_id": variant.variant_id, "variant": variant.model_dump(mode="json"), "facts": facts}
    if thresholds:
        named = {target: dict(zip(classes[target], found, strict=True)) for target, found in thresholds.items()}
        description["thresholds"] = named
    if temperatures:
        description["temperatures"] = dict(temperatures)
    contents = {
        "weights.safetensors": safetensors.torch.save(weights),
        "variant.json": _json_bytes(description),
        "classes.json": _json_bytes({target: list(names) for target, names in classes.items()}),
        "preprocess.json": _json_bytes(preprocess.to_json()),
        "card.md": write_card(variant, classes, preprocess, facts, thresholds, temperatures).encode(),
    }
    if vocabulary:
        contents[VOCABULARY] = vocabulary.text().encode()
    sums = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents))
    _write_folder(dest, {**contents, SUMS: sums.encode()})
    return dest


def digest(path: Path) -> str:
    """The sha256 of a bundle's SHA256SUMS as 64 hex digits: it names everything in it. Raises BundleError without one."""
    return digest_of(Path(path))


def verify(path: Path) -> None:
    """Raises BundleError, naming the file, if one of the bundle's files is missing, changed, a link or too many."""
    with opened(Path(path)) as contents:
        for name in contents.sums:
            contents.check(name)


def names_of(path: Path) -> tuple[str, ...]:
    """The names of all files of a bundle. Raises BundleError if it is none."""
    with opened(path) as contents:
        return (*contents.sums, SUMS)


def load(path: Path | str, device: torch.device | str = "cpu") -> Bundle:
    """The bundle in a folder, its digests verified before anything in it is read; opens no network, unpickles nothing.

    Files are plain files of bounded size; the weights are as large as the variant's shapes, of its types, and finite. Raises
    BundleError if it is incomplete, damaged, of another format, or anything else than that.
    """
    with opened(Path(path)) as contents:
        try:
            return _load(contents, torch.device(device))
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, SafetensorError) as error:
            said = f"{type(error).__name__}: {error}"
            said = said if len(said) <= MAX_QUOTED_CHARS else f"{said[:MAX_QUOTED_CHARS]} ..."
            raise BundleError(f"{path} is no bundle that Headstart wrote: {said}") from error


def _load(contents: Contents, device: torch.device) -> Bundle:
    texts = {name: contents.read(name) for name in TEXTS}
    description: Any = parse_json(texts["variant.json"], "variant.json")
    if description["format"] != FORMAT:
        raise BundleError(
            f"{contents.path} has format {description['format']!r:.100}, and this version of Headstart reads {FORMAT}; update it"
        )
    variant = Variant.model_validate(description["variant"])
    classes = _read_classes(parse_json(texts["classes.json"], "classes.json"))
    stated: Any = parse_json(texts["preprocess.json"], "preprocess.json")
    for head in variant.heads:
        if TASK_FACTS[head.task].tells == "tags":
            check_names(classes[head.target])
    preprocess = preparation_of(variant.backbone).read_preprocess(stated)
    thresholds = {
        target: tuple(float(found[name]) for name in classes[target])
        for target, found in description.get("thresholds", {}).items()
    }
    temperatures = read_temperatures(description.get("temperatures", {}), classes)
    vocabulary = _read_vocabulary(contents, stated) if VOCABULARY in contents.sums else None
    placed = place_model(read_model(contents, variant, classes), device).eval()
    READERS[variant.modality].check(placed, vocabulary)
    return Bundle(placed, variant, classes, preprocess, description["facts"], thresholds, temperatures, vocabulary)


def _read_vocabulary(contents: Contents, preprocess: Any) -> Vocabulary:
    return parse_vocabulary(contents.read(VOCABULARY).decode(), lowercase=bool(preprocess.get("lowercase")))


def _read_classes(listed: Any) -> dict[str, tuple[str, ...]]:
    for target, names in listed.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise ValueError(f"the classes of {target!r} are no list of distinct names")
    return {target: tuple(names) for target, names in listed.items()}


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_folder(dest: Path, contents: Mapping[str, bytes]) -> None:
    partial, old = (dest.with_name(f".{dest.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in contents.items():
        (partial / name).write_bytes(content)
    if dest.exists():
        dest.rename(old)
    partial.rename(dest)
    shutil.rmtree(old, ignore_errors=True)
