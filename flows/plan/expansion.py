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
from flows.plan.form import Plan, Target
from flows.plan.targets import primary_metric, targets_of, task_of
from flows.records import DataVersion, Work
from heads.catalogue import HEAD_DESIGNS, TASK_FACTS
from heads.spec import RECIPE, RECIPE_OF, Fit, Head, Variant, is_screened

MAX_VARIANTS = 512


@dataclass(frozen=True)
class VariantRow:
    """A variant as a row of a table: head designs by target, and the fit settings in which the plan's variants differ."""

    variant_id: str
    label: str
    backbone: str
    heads: Mapping[str, str]
    freeze: str
    fit: Mapping[str, object]


def expand(plan: Plan, version: DataVersion) -> tuple[Variant, ...]:
    """Every variant of the plan's grid once, in the plan's order.

    Raises AskedWrongly if the grid has more than MAX_VARIANTS, the plan names no head design for the task of a target, or a
    backbone, a head and a setting of `fit` do not go together.
    """
    # Sorted, so that naming the same targets in another order asks for the same work.
    targets = sorted(targets_of(plan, version), key=lambda target: target.column)
    heads = [_heads(target, version, plan.heads) for target in targets]
    grid = plan.fit.grid()
    sizes = {"backbones": len(plan.sized_backbones), "heads": math.prod(map(len, heads)), "freeze": len(plan.freeze)}
    sizes |= {f"fit.{name}": len(values) for name, values in grid.items() if len(values) > 1}
    if (total := math.prod(sizes.values())) > MAX_VARIANTS:
        parts = " x ".join(f"{size} {name}" for name, size in sizes.items() if size > 1)
        raise AskedWrongly(f"the plan has {total} variants ({parts}); at most {MAX_VARIANTS} are allowed: shorten its lists")
    fits = [_fit(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    combinations = itertools.product(plan.sized_backbones, itertools.product(*heads), plan.freeze, fits)
    variants = itertools.starmap(_variant, combinations)
    return tuple({variant.variant_id: variant for variant in variants}.values())


def recipe_of(variant: Variant) -> int:
    """The number of the recipe by which a variant is trained."""
    return max(RECIPE_OF.get(TASK_FACTS[head.task].tells, RECIPE) for head in variant.heads)


def work_key(variant_id: str, weights_digest: str, data_version_digest: str, screening: str = "", recipe: int = RECIPE) -> str:
    """The key of a work, 16 hex digits: the same variant with the same first weights on the same data is the same work.

    A screened variant also has the key of its `screening` (from `screening_keys`): with other rivals it is another work.
    """
    return _digest([variant_id, weights_digest, data_version_digest, recipe, *([screening] if screening else [])])


def screening_keys(plan: Plan, version: DataVersion, variants: Sequence[Variant]) -> dict[str, str]:
    """The key of the screening, by variant id, for the variants that may end after their probe phase.

    The key is the hash of the rivals, the number of those that go on, and the measure that ranks them.
    """
    rivals = sorted(v.variant_id for v in variants if is_screened(v))
    if plan.screening is None or len(rivals) <= plan.screening:
        return {}
    return dict.fromkeys(rivals, _digest([rivals, plan.screening, primary_metric(plan, version)]))


def retraining_key(plan: Plan, version: DataVersion, works: Sequence[Work]) -> str:
    """The key of a retraining, 16 hex digits: equal for the same name, works and rules of promotion, on any worker group."""
    # Rules that came later count only where they are not the defaults.
    later = plan.promotion.model_dump(mode="json", exclude={"metric", "min_gain", "alpha"}, exclude_defaults=True)
    rules = [primary_metric(plan, version), plan.promotion.min_gain, plan.promotion.alpha, *([later] if later else [])]
    return _digest([plan.name, version.digest, sorted(work.key for work in works), rules])


def recipe_key(plan: Plan, variants: Sequence[Variant]) -> str:
    """Sixteen hex digits that name a recipe: the plan's variants but for their seeds, the source of their weights, screening."""
    unseeded = {v.model_copy(update={"fit": v.fit.model_copy(update={"seed": 0})}).variant_id for v in variants}
    return _digest([sorted(unseeded), plan.weights, plan.screening])


def start_key(plan: Plan, version: DataVersion, variants: Sequence[Variant]) -> str:
    """Sixteen hex digits that name a model's recipe on a data version, which starts from one champion, however often begun."""
    return _digest([plan.name, version.digest, recipe_key(plan, variants)])


def variant_label(variant: Variant, among: Sequence[Variant]) -> str:
    """A variant in words, such as 'mobilenet_v2 · linear · all', followed by the fit values in which `among` differ."""
    designs = {head.design for head in variant.heads}
    heads = " + ".join(f"{h.target} {h.design}" for h in variant.heads) if len(designs) > 1 else designs.pop()
    fit = [f"{name} {_plain(value)}" for name, value in _differing(variant, among).items()]
    return " · ".join([variant.backbone, heads, variant.freeze, *fit])


def describe_variants(variants: Sequence[Variant]) -> tuple[VariantRow, ...]:
    """The variants as rows of a table, in their order."""
    return tuple(
        VariantRow(
            variant_id=v.variant_id,
            label=variant_label(v, variants),
            backbone=v.backbone,
            heads={head.target: head.design for head in v.heads},
            freeze=v.freeze,
            fit=_differing(v, variants),
        )
        for v in variants
    )


def _heads(target: Target, version: DataVersion, designs: Sequence[str]) -> tuple[Head, ...]:
    task = task_of(target, version)
    fitting = [design for design in designs if design in HEAD_DESIGNS[task]]
    if not fitting:
        raise AskedWrongly(
            f"heads: none of {', '.join(designs)} is a design of {task}, which {target.column!r} is; "
            f"add one of: {', '.join(HEAD_DESIGNS[task])}"
        )
    ignore = tuple(sorted(set(target.ignore)))
    return tuple(Head(target=target.column, task=task, design=design, ignore=ignore, weight=target.weight) for design in fitting)


def _fit(values: Mapping[str, object]) -> Fit:
    try:
        return Fit.model_validate(values)
    except ValidationError as error:
        raise AskedWrongly(f"fit: {error.errors()[0]['msg']}, got {dict(values)}") from None


def _variant(backbone: str, heads: tuple[Head, ...], freeze: str, fit: Fit) -> Variant:
    try:
        return Variant(backbone=backbone, heads=heads, freeze=freeze, fit=fit)
    except ValidationError as error:
        raise AskedWrongly(f"{backbone}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _differing(variant: Variant, among: Sequence[Variant]) -> dict[str, object]:
    return {name: getattr(variant.fit, name) for name in Fit.model_fields if len({getattr(v.fit, name) for v in among}) > 1}


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
