"""The folder that a consumer pulls: written whole, verified by digests before anything in it is read, ready to predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from heads.atomic_files import appearing
from heads.bundle.card import write_card
from heads.bundle.contents import FILES, SUMS, TEXTS, VOCABULARY, WEIGHTS, Contents, are_files, digest_of, opened, parse_json
from heads.bundle.predicting import Bundle, predict_together, share_backbones
from heads.bundle.sample_inputs import READERS
from heads.bundle.weights import read_model
from heads.bundle.writing import SharedBackbone, write_weights
from heads.catalogue import TASK_FACTS
from heads.data.modalities import preparation_of
from heads.data.samples import Preprocess
from heads.data.wordpiece import Vocabulary, parse_vocabulary
from heads.errors import BundleError
from heads.model.model import Model
from heads.model.precision import place_model
from heads.spec import Variant
from heads.tasks.answers import Answer, Labels, MaskPrediction, Prediction, TagsPrediction
from heads.tasks.bio import check_names
from heads.tasks.temperature import read_temperatures

__all__ = [
    "FILES",
    "SUMS",
    "VOCABULARY",
    "Answer",
    "Bundle",
    "Labels",
    "MaskPrediction",
    "Prediction",
    "SharedBackbone",
    "TagsPrediction",
    "are_files",
    "digest",
    "load",
    "names_of",
    "predict_together",
    "save",
    "share_backbones",
    "verify",
]

FORMAT = 1
# How much of a parser's complaint is passed on: it may quote what it was given.
MAX_QUOTED_CHARS = 500


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
    shared: SharedBackbone | None = None,
) -> Path:
    """Writes a bundle to the folder `dest`, which appears whole by rename, in place of one that was there; gives `dest`.

    `thresholds` and `temperatures` are those of `Bundle`. `facts` are JSON values that say where weights and data come from;
    `metrics` among them becomes the card's table. Equal arguments give equal bytes, and sooner with `shared`, the model's own
    backbone if other models have it as well.
    """
    description = {"format": FORMAT, "variant_id": variant.variant_id, "variant": variant.model_dump(mode="json"), "facts": facts}
    if thresholds:
        named = {target: dict(zip(classes[target], found, strict=True)) for target, found in thresholds.items()}
        description["thresholds"] = named
    if temperatures:
        description["temperatures"] = dict(temperatures)
    contents = {
        "variant.json": _json_bytes(description),
        "classes.json": _json_bytes({target: list(names) for target, names in classes.items()}),
        "preprocess.json": _json_bytes(preprocess.to_json()),
        "card.md": write_card(variant, classes, preprocess, facts, thresholds, temperatures).encode(),
    }
    if vocabulary:
        contents[VOCABULARY] = vocabulary.text().encode()
    with appearing(dest) as partial:
        partial.mkdir()
        sums = {WEIGHTS: write_weights(partial / WEIGHTS, model, shared)}
        for name, content in contents.items():
            (partial / name).write_bytes(content)
            sums[name] = hashlib.sha256(content).hexdigest()
        (partial / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
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
