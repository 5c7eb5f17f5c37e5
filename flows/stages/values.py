"""The values that stages of a retraining hand on: the work plan, the scores on the holdout, the promotion.

The result of the training (`TrainResult`) is in `flows.records`, since the gate reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.baselines import Baseline, baseline_key
from flows.model_version import ModelVersion
from flows.plan import Plan, class_names, targets_of, variant_label
from flows.records import DataVersion, ScoreTable, TrainedVariant, Verdict, Work
from flows.settings import Settings
from flows.work_folder import WorkFolder, bundle_name

if TYPE_CHECKING:
    from flows.gate.fresh import FreshAccount


@dataclass(frozen=True)
class WorkPlan:
    """A plan on one data version: its works in the plan's order, the measure that ranks them, and the retraining's key."""

    plan: Plan
    version: DataVersion
    works: tuple[Work, ...]
    metric: str
    key: str

    @property
    def target(self) -> str:
        """The target of the measure that ranks them."""
        return self.metric.rpartition("/")[0]

    def label(self, work: Work) -> str:
        """The shortest name of the variant that is unique in this plan."""
        return variant_label(work.variant, [other.variant for other in self.works])

    def is_done(self, settings: Settings, work: Work) -> bool:
        """Whether the work has its result, or a failure that another try would only repeat."""
        return WorkFolder.of(settings.root, work.key).is_finished()

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each target that the plan's variants learn, in the order of its head's outputs."""
        return {target.column: class_names(target, self.version) for target in targets_of(self.plan, self.version)}


@dataclass(frozen=True)
class StoredBundle:
    """A bundle by its name below the storage root, for jobs, and by its folder on this machine."""

    name: str
    path: Path

    @property
    def digest(self) -> str:
        """What names everything in it. Raises BundleError if it is none."""
        from heads.bundle import digest

        return digest(self.path)


@dataclass(frozen=True)
class StoredCounted:
    """The file of a baseline that counts words, by its name below the storage root; its baseline's key names it."""

    name: str

    @property
    def digest(self) -> str:
        """The key."""
        return baseline_key(self.name)


class Contest(Protocol):
    """A model, by its work's key, and the champion, if there is one, scored on the same samples."""

    @property
    def key(self) -> str: ...
    @property
    def bundle(self) -> Path: ...
    @property
    def stored(self) -> StoredBundle: ...
    @property
    def table(self) -> ScoreTable: ...
    @property
    def champion(self) -> ModelVersion | None: ...
    @property
    def champion_table(self) -> ScoreTable | None: ...


@dataclass(frozen=True)
class Challenge:
    """An earlier candidate and the champion, scored on the same samples: on new ones, or on the holdout."""

    version: ModelVersion
    stored: StoredBundle
    table: ScoreTable
    champion: ModelVersion
    champion_table: ScoreTable

    @property
    def key(self) -> str:
        """The key of the challenger's work."""
        return self.version.work_key

    @property
    def bundle(self) -> Path:
        """The challenger's bundle, as a folder of this machine."""
        return self.stored.path


@dataclass(frozen=True)
class FreshScores:
    """The scores on samples that arrived since challenger and champion were made, and what was bet on before in the reign.

    Both are None if there is nothing to judge tonight, and `words` then say why.
    """

    challenge: Challenge | None = None
    account: FreshAccount | None = None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The candidate's and the champion's scores on the same holdout; the champion's are None for a first model.

    `bundle` is the candidate's, as a folder of this machine. Where new samples decide, `fresh` has the scores on them, and the
    champion is not scored on the holdout. `anchor` is the version from which losses are counted, None if the plan has no margin,
    or it is the champion. `why` says in words why the candidate is this variant. `baselines` are the plain models beside
    the variants, the best on validation first; `baseline_table` has its scores, if a first model must not be worse.
    """

    candidate: TrainedVariant
    table: ScoreTable
    champion: ModelVersion | None = None
    champion_table: ScoreTable | None = None
    anchor: ModelVersion | None = None
    anchor_table: ScoreTable | None = None
    why: str = ""
    baselines: tuple[Baseline, ...] = ()
    baseline_table: ScoreTable | None = None
    bundle: Path = Path()
    fresh: FreshScores | None = None

    @property
    def key(self) -> str:
        """The key of the candidate's work."""
        return self.candidate.key

    @property
    def baseline(self) -> Baseline | None:
        """The plain model that is best on validation."""
        return self.baselines[0] if self.baselines else None

    @property
    def stored(self) -> StoredBundle:
        """The candidate's bundle."""
        return StoredBundle(bundle_name(self.key), self.bundle)

    def told(self, verdict: Verdict) -> dict[str, float]:
        """The candidate's measures on the holdout, as a verdict on it lets them be shown."""
        from flows.gate import told_measures

        return told_measures(self.table.metrics, silent=self.keeps_silent(verdict))

    def keeps_silent(self, verdict: Verdict) -> bool:
        """Whether a verdict on the candidate keeps to itself how well it reads the holdout."""
        from flows.gate import is_silent

        return is_silent(verdict, has_champion=self.champion is not None)


@dataclass(frozen=True)
class PromotionResult:
    """The verdict, and the candidate's version in the registry, None if it was not registered.

    Where new samples decide, the verdict is on the `judged` challenger, None if there was nothing to judge, and `named` is what
    the ledger says of the candidate, the challenger from now on.
    """

    verdict: Verdict
    model: ModelVersion | None
    judged: Challenge | None = None
    named: Verdict | None = None

    @property
    def on_candidate(self) -> Verdict:
        """What is said of the candidate itself."""
        return self.named or self.verdict
