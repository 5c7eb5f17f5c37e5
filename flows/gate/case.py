"""The case that the gate judges: a candidate, the champion, and the rules of promotion. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flows.gate.classes import compare_classes
from flows.gate.evidence import Evidence, Policy, Rows
from flows.gate.resampling import compare_resampled
from flows.records import ScoreTable
from heads.catalogue import TASK_FACTS, Task


@dataclass(frozen=True)
class Case:
    """A candidate and the champion, if there is one, scored on the same samples, and the policy that they are judged by.

    Without a champion the candidate is compared with a constant answer, for classes `majority[target]`. `withdrawn` says that
    a person rolled this very model back. Each distinct image counts once.
    """

    candidate: ScoreTable
    champion: ScoreTable | None
    policy: Policy
    majority: Mapping[str, str] = field(default_factory=dict)
    withdrawn: bool = False
    champion_name: str = "the champion"

    @property
    def target(self) -> str:
        """The target of the policy's measure."""
        return self.policy.metric.rpartition("/")[0]

    @property
    def task(self) -> Task:
        """The target's task, from the candidate's table."""
        return self.candidate.tasks.get(self.target, "classification")

    @cached_property
    def after(self) -> Rows:
        """The candidate's rows of the target, without masks in which no pixel counts."""
        rows = _rows(self.candidate, self.target)
        if TASK_FACTS[self.task].tells != "pixels":
            return rows
        before = _rows(self.champion, self.target)
        return {key: row for key, row in rows.items() if row.pixels or (key in before and before[key].pixels)}

    @cached_property
    def before(self) -> Rows:
        """The champion's rows of the same samples; none without a champion."""
        rows = _rows(self.champion, self.target)
        return rows if TASK_FACTS[self.task].tells != "pixels" else {key: rows[key] for key in self.after if key in rows}

    @cached_property
    def evidence(self) -> Evidence | str:
        """The paired test of candidate and champion, or a reason, as a string, why they cannot be compared.

        Classes are tested by exact McNemar on accuracy, label sets and masks by the paired bootstrap of the policy's measure.
        Raises AskedWrongly if the measure is unknown or not defined on the samples.
        """
        if TASK_FACTS[self.task].tells == "class":
            constant = "" if self.champion else self.majority[self.target]
            tables = self.candidate, self.champion, self.after, self.before
            return compare_classes(*tables, self.policy, majority=constant, name=self.champion_name)
        return compare_resampled(
            self.candidate, self.champion, self.after, self.before, self.policy, task=self.task, name=self.champion_name
        )


def _rows(table: ScoreTable | None, target: str) -> Rows:
    return {(row.digest, row.truth): row for row in table.rows if row.target == target} if table else {}
