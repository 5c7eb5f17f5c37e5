"""What one stage of a retraining hands the next: the work plan, the scores on the holdout, and what the verdict led to.

What the training made (`TrainResult`) is in `flows.records`, as the gate reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flows import plan as plans
from flows.plan import Plan
from flows.records import DataVersion, ModelVersion, ScoreTable, TrainedVariant, Verdict, Work
from flows.settings import Settings
from flows.work_folder import WorkFolder


@dataclass(frozen=True)
class WorkPlan:
    """What a plan asks for on one data version: its works in the plan's order, the measure that ranks, and its key."""

    plan: Plan
    version: DataVersion
    works: tuple[Work, ...]
    metric: str
    key: str

    def label(self, work: Work) -> str:
        """The variant in words, as short as it is unmistakable in this plan."""
        return plans.label(work.variant, [other.variant for other in self.works])

    def is_done(self, settings: Settings, work: Work) -> bool:
        """Whether the work has its result, or a failure that another try would only repeat."""
        return WorkFolder.of(settings.storage, work.key).is_finished()

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each target that the plan's variants learn, in the order of its head's outputs."""
        return {target.column: plans.class_names(target, self.version) for target in plans.targets_of(self.plan, self.version)}


@dataclass(frozen=True)
class Scores:
    """The candidate and the champion on the same holdout; the champion's table is None for a first model."""

    candidate: TrainedVariant
    table: ScoreTable
    champion: ModelVersion | None
    champion_table: ScoreTable | None


@dataclass(frozen=True)
class Promotion:
    """The verdict, and the version it was spoken on (None where nothing was registered)."""

    verdict: Verdict
    model: ModelVersion | None
