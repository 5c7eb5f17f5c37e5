"""From a plan and a data version to variants, and to the keys by which finished work is found again."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from flows.errors import AskedWrongly
from flows.plan.form import Plan, Target, suggestion
from flows.records import SPLITS, DataVersion
from heads.spec import HEAD_DESIGNS, Fit, Head, Variant

MAX_VARIANTS = 512
# What ingest calls a column of mask pictures: no task of this version learns it.
MASK = "mask"


@dataclass(frozen=True)
class VariantRow:
    """A variant as a line of a table: head designs by target, and the fit settings in which the plan's variants differ."""

    variant_id: str
    label: str
    backbone: str
    heads: Mapping[str, str]
    freeze: str
    fit: Mapping[str, object]


def targets_of(plan: Plan, version: DataVersion) -> tuple[Target, ...]:
    """The plan's targets, or the one class column of the data set; raises AskedWrongly where that is not clear or not there."""
    if not version.samples:
        raise AskedWrongly("the workspace has no data yet; bring some in with `headstart data ingest SOURCE`")
    usable = [column for column in version.targets if column != MASK]
    if plan.targets is None:
        if len(usable) != 1:
            found = f"its columns are {', '.join(version.targets)}" if version.targets else "it has no target column"
            fix = f"name them, as in `targets: [{{column: {usable[0]}}}]`" if usable else "only class labels can be trained yet"
            raise AskedWrongly(f"targets: the plan names none, and the data set does not have exactly one: {found}; {fix}")
        return (Target(column=usable[0]),)
    for column in (target.column for target in plan.targets):
        if column == MASK and MASK in version.targets:
            raise AskedWrongly(f"targets: column {MASK!r} holds masks, which cannot be trained yet; allowed: {', '.join(usable)}")
        if column not in usable:
            hint = suggestion(column, usable)
            raise AskedWrongly(f"targets: the data set has no column {column!r}; {hint}allowed: {', '.join(usable) or 'none'}")
    return plan.targets


def check_data(plan: Plan, version: DataVersion) -> None:
    """Nothing where the data version serves the plan; raises AskedWrongly on a missing target, class or split."""
    for column in (target.column for target in targets_of(plan, version)):
        labels = {split: {s.labels[column] for s in version.samples if s.split == split} - {None} for split in SPLITS}
        if len(labels["train"]) < 2:
            found = ", ".join(sorted(str(name) for name in labels["train"])) or "none"
            raise AskedWrongly(f"target {column!r} needs at least two classes in the train split; found: {found}")
        if not labels["val"]:
            raise AskedWrongly(f"target {column!r} has no label in the val split, where variants are ranked; ingest more data")
        for split in ("val", "test"):
            unseen = sorted(str(name) for name in labels[split] - labels["train"])
            if unseen:
                raise AskedWrongly(
                    f"target {column!r}: the {split} split holds classes that train lacks: {', '.join(unseen)}; "
                    "add training samples of them or mend the labels"
                )
    column, _, measure = primary_metric(plan, version).rpartition("/")
    if measure == "top5" and (num_classes := len(version.classes(column))) <= 5:
        raise AskedWrongly(f"promotion.metric: top5 needs more than five classes, and {column!r} has {num_classes}; use accuracy")


def primary_metric(plan: Plan, version: DataVersion) -> str:
    """The measure that ranks and promotes, `<target>/<measure>`: the plan's, else the accuracy of its first target."""
    columns = [target.column for target in targets_of(plan, version)]
    if plan.promotion.metric is None:
        return f"{columns[0]}/accuracy"
    column, _, measure = plan.promotion.metric.rpartition("/")
    if column not in columns:
        words = f"{suggestion(column, columns)}allowed: {', '.join(f'{name}/{measure}' for name in columns)}"
        raise AskedWrongly(f"promotion.metric: the plan has no target {column!r}; {words}")
    return plan.promotion.metric


def expand(plan: Plan, version: DataVersion) -> tuple[Variant, ...]:
    """Every variant of the plan's grid once, in the plan's order; raises AskedWrongly where it is larger than MAX_VARIANTS."""
    # Sorted, so that naming the same targets in another order asks for the same work.
    targets = sorted(targets_of(plan, version), key=lambda target: target.column)
    heads = [_heads(target, plan.heads) for target in targets]
    grid = plan.fit.grid()
    sizes = {"backbones": len(plan.backbones), "heads": math.prod(map(len, heads)), "freeze": len(plan.freeze)}
    sizes |= {f"fit.{name}": len(values) for name, values in grid.items() if len(values) > 1}
    if (total := math.prod(sizes.values())) > MAX_VARIANTS:
        parts = " x ".join(f"{size} {name}" for name, size in sizes.items() if size > 1)
        raise AskedWrongly(f"the plan has {total} variants ({parts}); at most {MAX_VARIANTS} are allowed: shorten its lists")
    fits = [_fit(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    found = itertools.product(plan.backbones, itertools.product(*heads), plan.freeze, fits)
    variants = (Variant(backbone=b, heads=h, freeze=f, fit=fit) for b, h, f, fit in found)
    return tuple({variant.variant_id: variant for variant in variants}.values())


def work_key(variant_id: str, weights_digest: str, data_version_digest: str) -> str:
    """Sixteen hex digits: the same variant on the same first weights and the same data is the same work."""
    return _digest([variant_id, weights_digest, data_version_digest])


def retraining_key(plan: Plan, version: DataVersion, weights_digests: Mapping[str, str]) -> str:
    """Sixteen hex digits: the same work, name and rules of promotion, whatever the plan's formatting or worker group.

    `weights_digests` gives the digest of each backbone's first weights ('none' for random ones).
    """
    works = sorted(work_key(v.variant_id, weights_digests[v.backbone], version.digest) for v in expand(plan, version))
    rules = [primary_metric(plan, version), plan.promotion.min_gain, plan.promotion.alpha]
    return _digest([plan.name, version.digest, works, rules])


def label(variant: Variant, among: Sequence[Variant]) -> str:
    """A variant in words, such as 'mobilenet_v2 · linear · all': its fit values follow only where `among` differ in them."""
    designs = {head.design for head in variant.heads}
    heads = " + ".join(f"{h.target} {h.design}" for h in variant.heads) if len(designs) > 1 else designs.pop()
    fit = [f"{name} {_plain(value)}" for name, value in _differing(variant, among).items()]
    return " · ".join([variant.backbone, heads, variant.freeze, *fit])


def describe(variants: Sequence[Variant]) -> tuple[VariantRow, ...]:
    """The variants as rows of a table, in their order."""
    return tuple(
        VariantRow(
            variant_id=v.variant_id,
            label=label(v, variants),
            backbone=v.backbone,
            heads={head.target: head.design for head in v.heads},
            freeze=v.freeze,
            fit=_differing(v, variants),
        )
        for v in variants
    )


def _heads(target: Target, designs: Sequence[str]) -> tuple[Head, ...]:
    fitting = [design for design in designs if design in HEAD_DESIGNS[target.task]]
    return tuple(Head(target=target.column, task=target.task, design=design) for design in fitting)


def _fit(values: Mapping[str, object]) -> Fit:
    try:
        return Fit.model_validate(values)
    except ValidationError as error:
        raise AskedWrongly(f"fit: {error.errors()[0]['msg']}, got {dict(values)}") from None


def _differing(variant: Variant, among: Sequence[Variant]) -> dict[str, object]:
    return {name: getattr(variant.fit, name) for name in Fit.model_fields if len({getattr(v.fit, name) for v in among}) > 1}


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
