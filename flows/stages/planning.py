"""The plan stage: the works that a plan asks for on a data version, and which of them are left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from pydantic import ValidationError

from flows import dataset
from flows.errors import AskedWrongly, HeadstartError
from flows.plan import Plan, check_data, expand, primary_metric, recipe_of, retraining_key, screening_keys, start_key, work_key
from flows.records import DataVersion, Work
from flows.sample_files import check_turned
from flows.settings import Settings
from flows.stages.first_weights import Start, find_start, find_weights, note_start
from flows.stages.session import RetrainingSession, open_registry
from flows.stages.values import WorkPlan
from flows.words import counted
from heads.errors import HeadsError
from heads.spec import Variant

_PLANNED: ContextVar[WorkPlan | None] = ContextVar("planned", default=None)


def make_work_plan(plan: Plan, version: DataVersion, settings: Settings | None = None) -> WorkPlan:
    """The works of a plan on a data version, with the weights found and checked.

    The settings say where the champion is, for a plan that starts from it. Raises AskedWrongly if the data lacks what the plan
    needs, and what `find_weights` raises.
    """
    check_data(plan, version)
    check_turned(version)
    asked = expand(plan, version)
    start = find_champion(settings, plan, start_key(plan, version, asked))
    found = {name: find_weights(plan, name, start) for name in dict.fromkeys(v.backbone for v in asked)}
    variants = tuple(_sized(variant, found[variant.backbone].path) for variant in asked)
    weights = {variant.backbone: found[one.backbone] for variant, one in zip(variants, asked, strict=True)}
    screening_by_variant = screening_keys(plan, version, variants)
    works = tuple(
        Work(
            work_key(
                v.variant_id,
                weights[v.backbone].digest,
                version.digest,
                screening_by_variant.get(v.variant_id, ""),
                recipe_of(v),
            ),
            v,
            weights[v.backbone],
            v.variant_id in screening_by_variant,
        )
        for v in variants
    )
    _check_leaks_guard(plan, works)
    key = retraining_key(plan, version, works)
    return WorkPlan(plan, version, works, primary_metric(plan, version), key)


def _check_leaks_guard(plan: Plan, works: Sequence[Work]) -> None:
    """Refuse a plan that is to block by near-duplicates, and has no features to look for them by."""
    if plan.promotion.guards.leaks != "block":
        return
    from heads.trunks.trunk import stored_taps

    if not any(stored_taps(work.variant) for work in works):
        raise AskedWrongly(
            "promotion.guards.leaks: block, and near-duplicates of the holdout cannot be looked for: no variant of the plan "
            "stores features; add one whose backbone is frozen (freeze: all), or write leaks: warn"
        )


def find_champion(settings: Settings | None, plan: Plan, key: str | None = None) -> Start | None:
    """The version whose backbone a plan with `weights: champion` starts from; None of other plans.

    It is the one that was noted if the retraining of this key began before, else the present champion.
    """
    if not plan.starts_from_champion:
        return None
    assert settings, "they say where the registry is"
    return find_start(open_registry(settings), settings.root, plan.name, key)


def find_mismatches(settings: Settings, asked: Sequence[Plan]) -> list[str]:
    """Which plans would be refused on the workspace's present data version, and why, in words; none if that cannot be read."""
    try:
        version = dataset.read_version(settings.workspace)
    except (HeadstartError, HeadsError, OSError):
        return []
    found = []
    for plan in asked:
        try:
            check_data(plan, version)
            expand(plan, version)
        except (HeadstartError, HeadsError) as error:
            found.append(f"{plan.name} does not fit the data of now, on which its runs are refused: {error}")
    return found


@contextlib.contextmanager
def planned(work_plan: WorkPlan | None) -> Iterator[None]:
    """Let a retraining in this block reuse this work plan, if it is for the same plan and data version."""
    token = _PLANNED.set(work_plan)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def plan_work(session: RetrainingSession, version: DataVersion) -> WorkPlan:
    """The works of the session's plan; says how many are left, and where first weights come from.

    With `weights: champion`, the version that it starts from is noted here, so that it stays the same until the data changes.
    """
    work_plan = _PLANNED.get()
    if session.plan.starts_from_champion:
        key = start_key(session.plan, version, expand(session.plan, version))
        note_start(find_start(open_registry(session.settings), session.settings.root, session.plan.name, key), key)
        # Whoever waited for another retraining may have planned with an earlier champion.
        work_plan = None
    if work_plan is None or work_plan.plan != session.plan or _identity(work_plan.version) != _identity(version):
        work_plan = make_work_plan(session.plan, version, session.settings)
    for backbone, origin in dict.fromkeys((work.variant.backbone, work.weights.origin) for work in work_plan.works):
        if origin:
            session.say(f"{backbone} starts from {origin}")
    left = sum(not work_plan.is_done(session.settings, work) for work in work_plan.works)
    session.say(f"{counted(len(work_plan.works), 'variant')}, {left} left to train")
    return work_plan


def _identity(version: DataVersion) -> tuple[str, str, Path]:
    return version.digest, version.revision, version.data


def _sized(variant: Variant, weights: Path | None) -> Variant:
    """The variant with the size of its weights, if these decide it. Raises AskedWrongly if its settings do not fit that size."""
    if variant.backbone != "bert":
        return variant
    from heads import backbones

    name = backbones.sized(variant.backbone, weights)
    try:
        return Variant.model_validate(variant.model_dump() | {"backbone": name})
    except ValidationError as error:
        raise AskedWrongly(f"bert: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
