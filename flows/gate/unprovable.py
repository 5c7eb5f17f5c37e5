"""What no model can prove on a holdout, however good it is, and which samples it lacks for that, in words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from flows.gate.evidence import Level, Rows
from flows.words import first_of
from heads.catalogue import TASK_FACTS, Task
from heads.tasks.bio import types_in
from heads.tasks.names import split_labels

MAX_SHOWN = 10


def missing_classes(task: Task, rows: Rows, classes: Iterable[str]) -> tuple[str, ...]:
    """Which of the classes that a model learned no row has; of tags, which types of spans."""
    tells = TASK_FACTS[task].tells
    present = {name for row in rows.values() for name in (split_labels(row.truth) if tells == "labels" else [row.truth])}
    if tells in ("pixels", "tags"):
        present = {true for row in rows.values() for true, _, _ in row.pixels if true}
    learned = sorted(types_in(classes)) if tells == "tags" else classes
    return tuple(name for name in learned if name not in present)


def out_of_reach(
    opponent: str, misread: int, units: str, best: str, level: Level, *, missing: Collection[str], is_constant: bool
) -> str:
    """Why even a model without a mistake could not be proven better, and what helps.

    `misread` of `units` is all that the opponent misreads, `best` how low p would be, `missing` the classes without a sample.
    """
    others = " of other classes" if is_constant else ""
    if misread:
        return (
            f"{opponent} misreads only {misread} of {units}: even a model without a mistake would reach {best}, not below "
            f"{level.words}; add test samples{others} or raise alpha"
        )
    return (
        f"{opponent} misreads none of {units}, so no model can be shown to be better, whatever alpha is; "
        f"add test samples{lacked(missing) or others}"
    )


def lacked(missing: Collection[str]) -> str:
    """Of which classes to add samples, in words; '' if the holdout lacks none."""
    names = [repr(name) for name in missing]
    return f" of {first_of(names, MAX_SHOWN)} (the holdout has none)" if names else ""
