"""What each task is called, measured by and described with, for whoever plans, draws or writes cards. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heads.spec import Task

COUNTED = ("f1_macro", "f1_micro", "f1_weighted", "precision_macro", "recall_macro")
RANKED = ("auroc", "average_precision")


@dataclass(frozen=True)
class TaskFacts:
    """A task in names and words.

    `primary` judges an epoch, and ranks and promotes where a plan names nothing. `promotable` are the measures that promotion may
    go by, higher being better, and `drawn` those that a learning curve shows beside the loss. A card says what a model of
    the task does (`purpose`), what it answers (`answer`) and what it cannot do (`limit`).
    """

    primary: str
    promotable: tuple[str, ...]
    drawn: tuple[str, ...]
    purpose: str
    answer: str
    limit: str
    has_masks: bool = False


TASK_FACTS: Mapping[Task, TaskFacts] = {
    "classification": TaskFacts(
        primary="accuracy",
        promotable=("accuracy", "top5", *COUNTED, *RANKED),
        drawn=("accuracy", "f1_macro"),
        purpose="tells what class an image is of",
        answer="a `Prediction`: `label`, its `probability`, and every class's in `probabilities`",
        limit="answers with one of its classes whatever it is shown",
    ),
    "multilabel": TaskFacts(
        primary="average_precision",
        promotable=("accuracy", *COUNTED, *RANKED),
        drawn=("average_precision", "f1_macro"),
        purpose="tells which labels an image has",
        answer="`Labels`: `labels`, those whose probability reaches their threshold, and every label's in `probabilities`",
        limit="answers with any number of its labels, none included",
    ),
    "segmentation": TaskFacts(
        primary="miou",
        promotable=("miou", "pixel_accuracy", "dice"),
        drawn=("miou", "dice"),
        purpose="tells the class of every pixel",
        answer="a `MaskPrediction` of the image's own size: `mask`, an array of the values above, and each one's `shares`; "
        '`picture().save("mask.png")` writes it as it is',
        limit="gives every pixel one of its values",
        has_masks=True,
    ),
}
MAX_CLASSES_SHOWN = 50


def split_labels(cell: str) -> tuple[str, ...]:
    """The labels of a multi-label cell, each once, sorted, without blanks around them: 'b| a' gives a and b."""
    return tuple(sorted({label for part in cell.split("|") if (label := part.strip())}))


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Names in a sentence; of very many the first, and how many more there are."""
    more = len(names) - MAX_CLASSES_SHOWN
    return ", ".join(names[:MAX_CLASSES_SHOWN]) + (f" and {more} more in `classes.json`" if more > 0 else "")
