"""Pictures of a variant and of a leaderboard, as PNG bytes; drawn without a screen, in any thread."""

from __future__ import annotations

import re

from flows.pictures.bars import iou_bars, leaderboard
from flows.pictures.confusions import confusion_matrix
from flows.pictures.curves import freeze_map, learning_curves
from flows.pictures.examples import mask_examples, read_images
from flows.pictures.reliability import reliability_diagram
from flows.pictures.samples import sample_images
from flows.pictures.tokens import ColouredText, coloured_texts
from flows.places import Place
from flows.work_records import WorkResult
from heads.bert_size import stages_of
from heads.catalogue import TASK_FACTS

__all__ = [
    "ColouredText",
    "coloured_texts",
    "confusion_matrix",
    "draw_variant",
    "freeze_map",
    "iou_bars",
    "leaderboard",
    "learning_curves",
    "mask_examples",
    "picture_file",
    "reliability_diagram",
    "sample_images",
]


def draw_variant(result: WorkResult, works: Place | None = None) -> dict[str, bytes]:
    """The pictures of a finished work by file name: learning curves, a freeze map, a confusion matrix a target.

    Masks also have the IoU of each class, and, if the place of all `works` is given, the examples in the work's folder.
    """
    variant = result.variant or {}
    tasks = {head["target"]: head.get("task", "classification") for head in variant.get("heads", [])}
    pictures = {"learning_curves.png": learning_curves(result.epochs, result.best_epoch, tasks)}
    frozen = [epoch.num_frozen_stages for epoch in result.epochs if epoch.num_frozen_stages is not None]
    # Results of earlier versions do not say which stages were frozen.
    if variant and len(frozen) == len(result.epochs):
        pictures["freeze_map.png"] = freeze_map(frozen, stages_of(variant["backbone"]), variant["freeze"])
    for target, matrix in result.confusion.items():
        names, tells = result.classes[target], TASK_FACTS[tasks.get(target, "classification")].tells
        is_mask = tells == "pixels"
        pictures[picture_file("confusion", target)] = confusion_matrix(
            matrix, names, target, of_pixels=is_mask, of_words=tells == "tags"
        )
        if is_mask:
            pictures[picture_file("iou", target)] = iou_bars(matrix, names, target)
    for target in tasks:
        examples = [example for example in result.examples or () if example.target == target]
        if examples and works and (images := read_images(works.within(result.work_key), examples)):
            pictures[picture_file("examples", target)] = mask_examples(images, examples, target)
    return pictures


def picture_file(kind: str, target: str) -> str:
    """The name of a target's picture of this kind."""
    name = re.sub(r"[^\w.\-]", "_", target)
    return f"{kind}_{name}.png"
