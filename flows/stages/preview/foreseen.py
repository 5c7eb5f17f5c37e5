"""What the verdict will say of a test split on which not even a model without a mistake could be promoted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flows.plan import majority_classes, targets_of
from flows.records import DataVersion, ScoreTable
from flows.stages.values import WorkPlan
from heads.catalogue import TASK_FACTS, Tells
from heads.tasks.bio import read_cell, spans_of
from heads.tasks.names import split_labels
from heads.tasks.rows import Scored


def foresee_verdict(work_plan: WorkPlan) -> str:
    """Why no first model could be promoted on the test split, in the verdict's words; '' if one could."""
    from flows.gate import Case, Policy

    version, rules = work_plan.version, work_plan.plan.promotion
    target = next(one for one in targets_of(work_plan.plan, version) if one.column == work_plan.target)
    assert target.task
    tells, classes = TASK_FACTS[target.task].tells, work_plan.classes[target.column]
    tested = [(s, cell) for s in version.samples if s.split == "test" and (cell := s.labels[target.column]) is not None]
    rows = [
        _perfect(version, tells, classes, target.ignore, Scored(s.digest, target.column, cell, cell, 1.0)) for s, cell in tested
    ]
    case = Case(
        ScoreTable("", version.digest, tuple(rows), {work_plan.metric: 1.0}, {target.column: target.task}),
        None,
        Policy(work_plan.metric, rules.min_gain, rules.alpha),
        majority=majority_classes(version),
        classes=work_plan.classes,
        taken_together={s.digest: s.group for s, _ in tested if s.group},
    )
    words = case.foresee()
    return f"no first model can be promoted on this test split: {words}" if words else ""


def _perfect(version: DataVersion, tells: Tells, classes: Sequence[str], ignore: Sequence[int], row: Scored) -> Scored:
    """The row of a sample that is read without a mistake, from one with its cell as truth and answer."""
    counts = Counter[str]()
    match tells:
        case "class":
            return row
        case "labels":
            labels = split_labels(row.truth)
            cell = "|".join(labels)
            return Scored(row.digest, row.target, cell, cell, 1.0, {name: float(name in labels) for name in classes})
        case "pixels":
            pixels = version.masks[row.truth].pixels
            counts.update({str(value): count for value, count in pixels.items() if value not in ignore})
        case "tags":
            counts.update(span.type for span in spans_of(read_cell(row.truth)))
    return Scored(
        row.digest, row.target, row.truth, row.predicted, 1.0, {}, tuple((name, name, num) for name, num in counts.items())
    )
