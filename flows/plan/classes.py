"""The classes of a target, whatever its task: their names, and how often each occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from flows.plan.form import Target
from flows.plan.targets import find_task, task_of
from flows.records import DataVersion
from heads.catalogue import TASK_FACTS, Task
from heads.tasks.bio import read_cell, tag_names, types_in
from heads.tasks.names import split_labels


def class_names(target: Target, version: DataVersion) -> tuple[str, ...]:
    """The classes that a head learns, those in `train`, in the order of its outputs.

    Class names and labels are sorted; the classes of masks are the values that are not ignored, ascending, as text; those of tags
    are O, then B and I of each type.
    """
    return tuple(count_classes(target, version, "train"))


def count_classes(target: Target, version: DataVersion, split: str) -> dict[str, int]:
    """The number of samples (of masks: pixels, of tags: words) of each class in a split, in the order of `class_names`."""
    task = task_of(target, version)
    counts: Counter[str] = Counter()
    for sample in version.samples:
        cell = sample.labels[target.column]
        if sample.split == split and cell is not None:
            counts.update(_classes_in(cell, task, target, version))
    names: Iterable[str] = sorted(counts, key=int) if TASK_FACTS[task].tells == "pixels" else sorted(counts)
    if TASK_FACTS[task].tells == "tags" and counts:
        names = tag_names(types_in(counts))
    return {name: counts[name] for name in names}


def majority_classes(version: DataVersion) -> dict[str, str]:
    """The most frequent cell of each target in `train`, without targets of masks and tags; ties go to the first by name."""
    majority = {}
    for target in version.targets:
        if TASK_FACTS[find_task(version, target)].tells in ("pixels", "tags"):
            continue
        counts = Counter(name for s in version.samples if s.split == "train" and (name := s.labels[target]) is not None)
        if counts:
            majority[target] = min(counts, key=lambda name: (-counts[name], name))
    return majority


def _classes_in(cell: str, task: Task, target: Target, version: DataVersion) -> Mapping[str, int]:
    if TASK_FACTS[task].tells == "class":
        return {cell: 1}
    if TASK_FACTS[task].tells == "labels":
        return dict.fromkeys(split_labels(cell), 1)
    if TASK_FACTS[task].tells == "tags":
        return Counter(read_cell(cell))
    mask = version.masks.get(cell)
    return {str(value): count for value, count in mask.pixels.items() if value not in target.ignore} if mask else {}
