"""The plain baselines of a retraining: those that its training fits, and what they measure; else a constant answer's measures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.baselines import Baseline, BaselineFolder, counted_of, probe_of
from flows.plan import count_classes, targets_of
from flows.records import Work
from flows.settings import Settings
from heads.catalogue import TASK_FACTS, Task

if TYPE_CHECKING:
    from flows.stages.values import WorkPlan

# Raised when a probe is fitted otherwise than before, so that older ones are fitted again.
RECIPE, LABELS_RECIPE = 1, 2
LEARNED_SPLITS = ("train", "val")


def baseline_work(work_plan: WorkPlan) -> Work | None:
    """The plan's first work whose frozen trunk's features a probe can read, under the probe's key.

    None if the measure that ranks is of masks or tags, or no variant stores the features of its whole backbone, frozen.
    """
    from heads.trunks.trunk import stored_taps

    if TASK_FACTS[_task(work_plan)].tells in ("pixels", "tags"):
        return None
    for work in work_plan.works:
        variant = work.variant
        if any(phase.num_frozen_stages == variant.num_stages for phase in stored_taps(variant)):
            # Its plain view is all that a probe reads.
            plain = variant.model_copy(update={"fit": variant.fit.model_copy(update={"views": 1})})
            return Work(_key(work_plan, work), plain, work.weights)
    return None


def _key(work_plan: WorkPlan, work: Work) -> str:
    """The key of the probe on a work's trunk: the hash of what it is fitted on, and how."""
    target = work_plan.target
    probe = probe_of(work.variant, target, is_random=work.weights.path is None)
    recipe = LABELS_RECIPE if TASK_FACTS[_task(work_plan)].tells == "labels" else RECIPE
    return _hash([recipe, probe.variant_id, work.variant.sees_whole, work.weights.digest, _labels(work_plan)])


def counted_key(work_plan: WorkPlan) -> str:
    """The key of the baseline that counts the words of a plan of texts: the hash of its kind and recipe, of target, texts and
    labels; '' of other plans."""
    counted = counted_of(_task(work_plan))
    if work_plan.version.modality != "text" or counted is None:
        return ""
    return _hash([counted.kind, counted.recipe, work_plan.target, _task(work_plan), _labels(work_plan)])


def _labels(work_plan: WorkPlan) -> list[tuple[str, str, str]]:
    target, samples = work_plan.target, work_plan.version.only(LEARNED_SPLITS).samples
    return sorted((s.pixel_digest, s.split, cell) for s in samples if (cell := s.labels[target]) is not None)


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def find_baselines(settings: Settings, work_plan: WorkPlan) -> tuple[Baseline, ...]:
    """The baselines of a work plan, best on validation first: the probe and, of texts, one that counts words, if fitted.

    Without any the constant answer, with a note that says why.
    """
    plain, key, name = _find_probe(settings, work_plan), counted_key(work_plan), f"val/{work_plan.metric}"
    found, counted = BaselineFolder.of(settings.root, key).read() if key else None, counted_of(_task(work_plan))
    if not isinstance(found, Baseline):
        return (replace(plain, note=f"{plain.note}; no {counted.label}: {found}") if found and counted else plain,)
    fitted = [found] if plain.kind == "majority" else [plain, found]
    return tuple(sorted(fitted, key=lambda one: -one.metrics.get(name, -1.0)))


def _find_probe(settings: Settings, work_plan: WorkPlan) -> Baseline:
    """The probe of a work plan, if one was fitted, else the constant answer, with a note that says why."""
    if (tells := TASK_FACTS[_task(work_plan)].tells) in ("pixels", "tags"):
        return majority(work_plan, f"{'masks' if tells == 'pixels' else 'tags'} have no probe")
    work = baseline_work(work_plan)
    if work is None:
        return majority(work_plan, "no variant stores the features of a frozen backbone, which a probe could read")
    found = BaselineFolder.of(settings.root, work.key).read()
    if isinstance(found, Baseline):
        return found
    return majority(work_plan, found or f"a logistic probe on {work.variant.backbone} is fitted by the next training")


def majority(work_plan: WorkPlan, note: str) -> Baseline:
    """The constant answer: how often classes or labels occur in train as probabilities, of masks the most frequent value,
    of tags that no word is in a span.

    Its measures on validation are those of a variant that would answer so, but that masks are measured at their own size.
    """
    from heads.training.constant import measure_constant, measure_constant_mask, measure_constant_tags

    target, task, version = work_plan.target, _task(work_plan), work_plan.version
    (column,) = (each for each in targets_of(work_plan.plan, version) if each.column == target)
    train, val = (count_classes(column, version, split) for split in ("train", "val"))
    names, counts = list(train), list(train.values())
    if TASK_FACTS[task].tells == "pixels":
        measures = measure_constant_mask(task, counts, [val.get(name, 0) for name in names])
    elif TASK_FACTS[task].tells == "tags":
        measures = measure_constant_tags(task, [val.get(name, 0) for name in names])
    else:
        samples = [s for s in version.samples if s.labels[target] is not None]
        cells = [cell for s in samples if s.split == "val" and (cell := s.labels[target]) is not None]
        measures = measure_constant(task, names, counts, sum(s.split == "train" for s in samples), cells)
    metrics = {f"val/{target}/{name}": value for name, value in measures.items()}
    return Baseline(kind="majority", label="majority", metrics=metrics, note=note)


def _task(work_plan: WorkPlan) -> Task:
    return next(head.task for head in work_plan.works[0].variant.heads if head.target == work_plan.target)
