"""The values that stages of a retraining hand on: the work plan, the scores on the holdout, the promotion.

The result of the training (`TrainResult`) is in `flows.records`, since the gate reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flows import plan as plans
from flows.baselines import Baseline
from flows.plan import Plan
from flows.records import DataVersion, ModelVersion, ScoreTable, TrainedVariant, Verdict, Work
from flows.settings import Settings
from flows.work_folder import WorkFolder


@dataclass(frozen=True)
class WorkPlan:
    """A plan on one data version: its works in the plan's order, the measure that ranks them, and the retraining's key."""

    plan: Plan
    version: DataVersion
    works: tuple[Work, ...]
    metric: str
    key: str

    def label(self, work: Work) -> str:
        """The shortest name of the variant that is unique in this plan."""
        return plans.label(work.variant, [other.variant for other in self.works])

    def is_done(self, settings: Settings, work: Work) -> bool:
        """Whether the work has its result, or a failure that another try would only repeat."""
        return WorkFolder.of(settings.root, work.key).is_finished()

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each target that the plan's variants learn, in the order of its head's outputs."""
        return {target.column: plans.class_names(target, self.version) for target in plans.targets_of(self.plan, self.version)}


@dataclass(frozen=True)
class Scores:
    """The candidate's and the champion's scores on the same holdout; the champion's are None for a first model.

    `bundle` is the candidate's, as a folder of this machine.

    `anchor` is the version from which losses are counted, None if the plan has no margin, or it is the champion.
    `why` says in words why the candidate is this variant. `baseline` is the plain model beside the variants; `baseline_table` has
    the scores of one that a first model must not be worse than.
    """

    candidate: TrainedVariant
    table: ScoreTable
    champion: ModelVersion | None
    champion_table: ScoreTable | None
    anchor: ModelVersion | None = None
    anchor_table: ScoreTable | None = None
    why: str = ""
    baseline: Baseline | None = None
    baseline_table: ScoreTable | None = None
    bundle: Path = Path()


@dataclass(frozen=True)
class Promotion:
    """The verdict, and the registered version that it judged, None if nothing was registered."""

    verdict: Verdict
    model: ModelVersion | None
