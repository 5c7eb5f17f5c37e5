"""Checks that a data version has what a plan needs, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flows.errors import AskedWrongly
from flows.plan.classes import count_classes
from flows.plan.form import Plan, Target
from flows.plan.promotion import refuse_unfit
from flows.plan.targets import groups_of, primary_metric, targets_of, tells_pixels
from flows.records import SPLITS, DataVersion
from flows.words import counted
from heads.bert_size import modality_of
from heads.catalogue import BACKBONE_STAGES

# More values than these are shades of an image, not classes.
MAX_MASK_VALUES = 256
# Masks with more values than these are refused if most values are next to others and fill less than this share of the pixels.
MANY_VALUES = 128
FEW_PIXELS = 0.005
TOP = 5
# Guards that are measured on images alone.
OF_IMAGES = ("leaks", "robustness")


def check_data(plan: Plan, version: DataVersion) -> None:
    """Check that the data version has what the plan needs.

    Raises AskedWrongly on a missing target, class, split, measure or column of groups, on masks whose pixels were not counted or
    are shades, on an image of the holdout that is also trained on, and on a guard that is to block and can never be measured.
    """
    _check_modality(plan, version)
    targets = targets_of(plan, version)
    groups_of(plan, version)
    _check_sealed(version)
    for target in targets:
        if tells_pixels(target):
            _check_masks(target, version)
        _check_classes(target, version)
    if "dice" in plan.fit.loss and not any(map(tells_pixels, targets)):
        listed = ", ".join(f"{target.column}: {target.task}" for target in targets)
        raise AskedWrongly(
            f"fit.loss: {plan.fit.loss} is of masks, and the plan has no target of segmentation ({listed}); "
            "allowed: cross_entropy, focal"
        )
    metric = primary_metric(plan, version)
    _check_guards(plan, version, next(t for t in targets if t.column == metric.rpartition("/")[0]))
    if plan.promotion.evidence == "fresh":
        try:
            refuse_unfit(metric)
        except ValueError as error:
            raise AskedWrongly(str(error)) from None
    column, _, measure = metric.rpartition("/")
    if measure == "top5":
        num_classes = len(count_classes(next(t for t in targets if t.column == column), version, "train"))
        if num_classes <= TOP:
            raise AskedWrongly(
                f"promotion.metric: top5 needs more than five classes, and {column!r} has {num_classes}; use accuracy"
            )


def _check_modality(plan: Plan, version: DataVersion) -> None:
    wrong = [name for name in plan.backbones if modality_of(name) != version.modality]
    if wrong and version.samples:
        allowed = ", ".join(name for name in BACKBONE_STAGES if modality_of(name) == version.modality)
        raise AskedWrongly(
            f"backbones: {wrong[0]} reads {modality_of(wrong[0])}s, and the data set holds {version.modality}s; "
            f"allowed: {allowed}"
        )


def _check_guards(plan: Plan, version: DataVersion, target: Target) -> None:
    """Refuse guards that are to block and can never be measured on this data: nothing would ever be blocked by them."""
    severities = plan.promotion.guards.severities
    blocking = [name for name in OF_IMAGES if severities.get(name) == "block"]
    if blocking and version.modality != "image":
        raise AskedWrongly(
            f"promotion.guards.{blocking[0]}: block has nothing to block by: it is measured on images, and the data set holds "
            f"{version.modality}s; write {blocking[0]}: off"
        )
    if "robustness" in blocking and tells_pixels(target):
        raise AskedWrongly(
            "promotion.guards.robustness: block has nothing to block by: it is measured on classes and label sets, and "
            f"{target.column!r}, which ranks, holds masks; write robustness: off"
        )


def _check_sealed(version: DataVersion) -> None:
    """Refuse images of the holdout whose bytes also lie in train or val; an ingest never leaves them so."""
    held_out = {sample.digest: sample.file for sample in version.samples if sample.split == "test"}
    if leaks := [sample for sample in version.samples if sample.split != "test" and sample.digest in held_out]:
        first = leaks[0]
        kind, have = version.modality, "has" if len(leaks) == 1 else "have"
        raise AskedWrongly(
            f"{counted(len(leaks), kind)} of the splits train and val {have} the bytes of a "
            f"test {kind}, e.g. {first.file} ({first.split}) and {held_out[first.digest]} (test): a model that has seen the "
            "holdout cannot be judged on it. Run `headstart data ingest SOURCE` again, which puts both into test, or remove one"
        )


def _check_classes(target: Target, version: DataVersion) -> None:
    column, masks = target.column, tells_pixels(target)
    counts = {split: count_classes(target, version, split) for split in SPLITS}
    if len(counts["train"]) < 2:
        names = ", ".join(counts["train"]) or "none"
        ignored = f" besides {', '.join(map(str, target.ignore))}, which it ignores" if target.ignore else ""
        raise AskedWrongly(
            f"target {column!r} needs at least two classes in the train split; found: {names}{ignored}; "
            f"add training {'masks' if masks else 'samples'} of others, or leave the target out"
        )
    if not counts["val"]:
        raise AskedWrongly(f"target {column!r} has no label in the val split, where variants are ranked; ingest more data")
    if masks:
        return _check_mask_values(target, version, set(counts["train"]))
    for split in ("val", "test"):
        if unseen := counts[split].keys() - counts["train"].keys():
            raise AskedWrongly(
                f"target {column!r}: the {split} split holds classes that train lacks: {', '.join(sorted(unseen))}; "
                "add training samples of them or mend the labels"
            )
    return None


def _check_masks(target: Target, version: DataVersion) -> None:
    files = {cell for sample in version.samples if (cell := sample.labels[target.column])}
    if unread := sorted(files - version.masks.keys()):
        raise AskedWrongly(
            f"target {target.column!r}: the pixels of {len(unread)} of {len(files)} masks were never counted, e.g. {unread[0]}; "
            "an older ingest brought them in: run `headstart data ingest SOURCE` again with the source they came from"
        )
    values = {value for file in files for value in version.masks[file].pixels} - set(target.ignore)
    if len(values) > MAX_MASK_VALUES:
        raise AskedWrongly(
            f"target {target.column!r}: its masks hold {len(values)} different values, from {min(values)} to {max(values)}; "
            f"these look like pictures rather than masks of classes. At most {MAX_MASK_VALUES} values are allowed: give masks "
            "whose pixels are class numbers, or leave the target out"
        )
    shaded = [file for file in files if _is_shaded(version.masks[file].pixels)]
    if len(values) > MANY_VALUES and len(shaded) > len(files) / 2:
        raise AskedWrongly(
            f"target {target.column!r}: its masks hold {len(values)} different values, and in {len(shaded)} of {len(files)} "
            f"masks, e.g. {min(shaded)}, most are neighbours with few pixels each: these look like shades, or like numbers of "
            "single objects, rather than classes. Save masks as PNG, change their size by nearest neighbour only, or list the "
            "values that count for nothing as `ignore`"
        )


def _is_shaded(pixels: Mapping[int, int]) -> bool:
    """Whether two in three of a mask's values have few pixels and stand next to another one."""
    few = FEW_PIXELS * sum(pixels.values())
    near = [v for v, count in pixels.items() if count < few and any(v + step in pixels for step in (-2, -1, 1, 2))]
    return len(near) > len(pixels) * 2 / 3


def _check_mask_values(target: Target, version: DataVersion, known: set[str]) -> None:
    """Refuse values in masks of val and test that no training mask has."""
    strange: Counter[int] = Counter()
    for sample in version.samples:
        cell = sample.labels[target.column]
        if cell and sample.split != "train":
            pixels = version.masks[cell].pixels
            strange.update(value for value in pixels if str(value) not in known and value not in target.ignore)
    if strange:
        listed = ", ".join(f"{value} ({counted(count, 'mask')})" for value, count in sorted(strange.items()))
        raise AskedWrongly(
            f"target {target.column!r}: masks of the val and test splits hold values that no training mask has: {listed}; "
            f"allowed: {', '.join(sorted(known, key=int))}. Mend the masks, add training masks of them, or write "
            f"ignore: {sorted({*target.ignore, *strange})}"
        )
