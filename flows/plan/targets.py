"""A plan's targets on a data version, with their tasks, and the measure that ranks and promotes."""

from __future__ import annotations

from collections.abc import Mapping

from flows.errors import AskedWrongly
from flows.manifest import is_mask_target, is_tags_target
from flows.plan.allowed import suggestion
from flows.plan.form import Plan, Target
from flows.plan.promotion import MEASURES_OF, PRIMARY
from flows.records import DataVersion
from heads.catalogue import TASK_FACTS, Task, Tells

# The manifest's column of groups, which is no target.
GROUP = "group"
WHAT_A_COLUMN_HOLDS: Mapping[Tells, str] = {
    "class": "class labels",
    "labels": "class labels",
    "pixels": "masks",
    "tags": "tags of words",
}


def targets_of(plan: Plan, version: DataVersion) -> tuple[Target, ...]:
    """The plan's targets, or, if it names none, the data set's one column, each with its task.

    Raises AskedWrongly if a target does not exist, if none is named and there are several, or if a task does not fit a column.
    """
    if not version.samples:
        raise AskedWrongly("the workspace has no data yet; bring some in with `headstart data ingest SOURCE`")
    columns = version.targets
    if plan.targets is None:
        if len(columns) != 1:
            found = f"its columns are {', '.join(columns)}" if columns else "it has no target column"
            fix = (
                f"name them, as in `targets: [{{column: {columns[0]}}}]`"
                if columns
                else "ingest samples with labels, or images with masks"
            )
            raise AskedWrongly(f"targets: the plan names none, and the data set does not have exactly one: {found}; {fix}")
        return (_with_task(Target(column=columns[0]), version),)
    for column in (target.column for target in plan.targets):
        if column not in columns:
            hint = suggestion(column, columns)
            raise AskedWrongly(f"targets: the data set has no column {column!r}; {hint}allowed: {', '.join(columns) or 'none'}")
    return tuple(_with_task(target, version) for target in plan.targets)


def find_task(version: DataVersion, column: str) -> Task:
    """The task of a column by its cells: segmentation for masks, tagging for tags of words, multilabel for sets of labels
    (`a|b`), else classification."""
    if is_mask_target(version.samples, column):
        return "segmentation"
    if is_tags_target(version.samples, column):
        return "tagging"
    return "multilabel" if any("|" in (sample.labels[column] or "") for sample in version.samples) else "classification"


def primary_metric(plan: Plan, version: DataVersion) -> str:
    """The measure that ranks and promotes, `<target>/<measure>`: the plan's, else its first target's primary one.

    Raises AskedWrongly if the plan names no such target, or a measure that the target's task does not have.
    """
    targets = {target.column: target for target in targets_of(plan, version)}
    if plan.promotion.metric is None:
        first = next(iter(targets.values()))
        return f"{first.column}/{PRIMARY[task_of(first, version)]}"
    column, _, measure = plan.promotion.metric.rpartition("/")
    if column not in targets:
        words = f"{suggestion(column, targets)}allowed: {', '.join(f'{name}/{measure}' for name in targets)}"
        raise AskedWrongly(f"promotion.metric: the plan has no target {column!r}; {words}")
    task = task_of(targets[column], version)
    if measure not in MEASURES_OF[task]:
        allowed = ", ".join(f"{column}/{name}" for name in MEASURES_OF[task])
        raise AskedWrongly(f"promotion.metric: {measure} is no measure of {task}, which {column!r} is; allowed: {allowed}")
    return plan.promotion.metric


def groups_of(plan: Plan, version: DataVersion) -> dict[str, str]:
    """The group of each test sample that is in one, by its digest: its cell in the column that `promotion.group` names.

    Raises AskedWrongly if the plan names a column that does not exist, is empty, or holds masks or tags.
    """
    column = plan.promotion.group or GROUP
    masks = [t for t in version.targets if is_mask_target(version.samples, t) or is_tags_target(version.samples, t)]
    cells = {s.digest: s.group if column == GROUP else s.labels.get(column) for s in version.samples}
    if plan.promotion.group and (column in masks or not any(cells.values())):
        grouped = any(sample.group for sample in version.samples)
        known = [*([GROUP] if grouped else []), *(name for name in version.targets if name not in masks)]
        raise AskedWrongly(
            f"promotion.group: the data set has no column {column!r} of groups; {suggestion(column, known)}"
            f"allowed: {', '.join(known) or 'none'}"
        )
    tested = {sample.digest for sample in version.samples if sample.split == "test"}
    return {digest: cell for digest, cell in cells.items() if cell and digest in tested}


def task_of(target: Target, version: DataVersion) -> Task:
    """The target's task: the one it names, else the one of its column's cells."""
    return target.task or find_task(version, target.column)


def tells_pixels(target: Target) -> bool:
    """Whether a target from `targets_of` is one of masks."""
    return target.task is not None and TASK_FACTS[target.task].tells == "pixels"


def _with_task(target: Target, version: DataVersion) -> Target:
    by_cells = find_task(version, target.column)
    task = target.task or by_cells
    holds = WHAT_A_COLUMN_HOLDS[TASK_FACTS[by_cells].tells]
    allowed = [name for name, facts in TASK_FACTS.items() if WHAT_A_COLUMN_HOLDS[facts.tells] == holds]
    if task not in allowed:
        raise AskedWrongly(
            f"targets: column {target.column!r} holds {holds}, "
            f"and its task is given as {task}; allowed: {', '.join(allowed)}, or leave task out"
        )
    if target.ignore and TASK_FACTS[by_cells].tells != "pixels":
        raise AskedWrongly(
            f"targets: ignore {list(target.ignore)} is for values of masks, and {target.column!r} is {task}; leave it out"
        )
    return target.model_copy(update={"task": task})
