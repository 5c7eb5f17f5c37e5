"""The case that the gate judges: a candidate, the champion, and the rules of promotion. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flows.errors import AskedWrongly
from flows.gate.account import WEEKLY_SHARE, Account, Kind, MeanLook, first_level, is_proven, look_at_mean
from flows.gate.bootstrap import NUM_RESAMPLES, seed_of
from flows.gate.classes import compare_classes
from flows.gate.clusters import FEW_GROUPS, MIN_CLUSTERS, Clusters, clusters_of, num_clusters
from flows.gate.evidence import Evidence, Level, Policy, Rows
from flows.gate.fresh import FreshAccount
from flows.gate.recipe import judged_keys, sample_values
from flows.gate.resampling import compare_resampled
from flows.gate.trials import Trials
from flows.gate.unprovable import missing_classes
from flows.records import Finding, ScoreTable
from heads.catalogue import TASK_FACTS, Task

NO_LABEL = "the holdout has no sample labelled for {!r}: nothing can be shown; add test samples"


@dataclass(frozen=True)
class Case:
    """A candidate and the champion, if there is one, scored on the same samples, and the policy that they are judged by.

    Without a champion the candidate is compared with a constant answer, for classes `majority[target]`. `classes` are those
    that its heads learned, by target. `files` are the samples' names for people, by digest. `withdrawn` says that a person
    rolled this very model back. `account` is what was asked of the champion's earlier challengers, `recipe` names the
    candidate's. Each distinct image counts once. `groups` has, by digest, the group of a sample that is in one; `taken_together`
    the group that its split keeps whole, which counts as one. `trials` is what was measured besides the scores. `anchor` is the
    last model that was promoted as superior, if the champion is another: where the policy has a margin, the candidate must not
    be worse than that one by as much. `baseline` is a plain model that a first one must not be worse than,
    `baseline_reads` says what that answers by, `is_frozen` that the candidate's heads alone were trained,
    `is_pretrained` that it began with other weights than random ones.

    With a `fresh` account the holdout is not asked which is better: both are scored on new samples, which no model was made
    from, and bets on them decide. Once they have, the case is of the holdout again, for the other guards, and `proof` is what
    they found.
    """

    candidate: ScoreTable
    champion: ScoreTable | None
    policy: Policy
    majority: Mapping[str, str] = field(default_factory=dict)
    withdrawn: bool = False
    champion_name: str = "the champion"
    account: Account = field(default_factory=Account)
    recipe: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)
    taken_together: Mapping[str, str] = field(default_factory=dict)
    anchor: ScoreTable | None = None
    anchor_name: str = ""
    baseline: ScoreTable | None = None
    baseline_name: str = ""
    baseline_reads: str = "the frozen features"
    is_frozen: bool = False
    is_pretrained: bool = True
    fresh: FreshAccount | None = None
    proof: Finding | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The target of the policy's measure."""
        return self.policy.metric.rpartition("/")[0]

    @property
    def measure(self) -> str:
        """The policy's measure, without its target."""
        return self.policy.metric.rpartition("/")[2]

    def seed(self, name: str) -> int:
        """The seed of a guard's random draws, which depend on the two bundles, the data version, the measure and this name."""
        old = self.champion.bundle_digest if self.champion else ""
        return seed_of(self.candidate.bundle_digest, old, self.candidate.data_version, self.policy.metric, name)

    @property
    def task(self) -> Task:
        """The target's task, from the candidate's table."""
        return self.candidate.tasks.get(self.target, "classification")

    @property
    def look(self) -> Kind:
        """What may be asked of the holdout: of a first model all, of a champion's challenger what its account allows."""
        if self.fresh:
            return "none"
        return self.account.next_look if self.champion else "first"

    @property
    def is_decided(self) -> bool:
        """Whether the guards may say how well the holdout was read: at a first look, and once it is proven that one is better."""
        if self.fresh:
            return self.proof is not None
        return self.look == "first" or (self.look == "weekly" and self._is_proven(self.margin))

    def _is_proven(self, margin: float | None) -> bool:
        return is_proven(self.tested.mean_look, self.policy.alpha, margin)

    @property
    def margin(self) -> float | None:
        """The loss that would be too much; None if the candidate has to be better: so has a first model."""
        return self.policy.margin if self.champion else None

    @cached_property
    def tested(self) -> Case:
        """The case of the candidate and the model that the test compares it with: with a margin the anchor, else the champion."""
        if self.margin is None or self.anchor is None:
            return self
        return replace(self, champion=self.anchor, champion_name=self.anchor_name, anchor=None)

    @property
    def is_superior(self) -> bool:
        """Whether a candidate that passes is shown to be better, and not only to be worse by less than the margin."""
        if self.margin is None:
            return True
        if self.look == "weekly":
            return self._is_proven(None)
        evidence = self.tested.evidence
        return not isinstance(evidence, str) and evidence.figures["p_value"] < self.level.value

    @cached_property
    def after(self) -> Rows:
        """The candidate's rows of the target; masks without a pixel that counts are left out."""
        rows = rows_of(self.candidate, self.target)
        if TASK_FACTS[self.task].tells != "pixels":
            return rows
        before = rows_of(self.champion, self.target)
        return {key: row for key, row in rows.items() if row.pixels or (key in before and before[key].pixels)}

    @cached_property
    def before(self) -> Rows:
        """The champion's rows of the same samples; none without a champion."""
        rows = rows_of(self.champion, self.target)
        return rows if TASK_FACTS[self.task].tells != "pixels" else {key: rows[key] for key in self.after if key in rows}

    @property
    def num_repeated(self) -> int:
        """How many of the candidate's rows repeat a sample, and so do not count."""
        keys = ((row.digest, row.truth) for row in self.candidate.rows if row.target == self.target)
        return sum(key in self.after for key in keys) - len(self.after)

    @property
    def level(self) -> Level:
        """What the p-value has to be below: all of alpha against a constant, against a champion the first look's share."""
        alpha = self.policy.alpha
        return first_level(alpha, len(self.after), self.margin) if self.champion else Level(alpha, f"alpha {alpha:g}")

    @property
    def level_spent(self) -> float:
        """The part of alpha that the look takes; 0 if it is none. The first bet of a reign takes all of it, later ones none."""
        if self.fresh:
            return 0.0 if self.fresh.has_begun else self.policy.alpha
        return {"first": self.level.value, "weekly": self.policy.alpha * WEEKLY_SHARE, "none": 0.0}[self.look]

    @cached_property
    def mean_look(self) -> MeanLook:
        """The candidate and the earlier challengers of its recipe together, against the champion.

        Raises AskedWrongly if the measure is unknown.
        """
        challengers = [*(rows_of(table, self.target) for table in self.account.challengers), self.after]
        values = sample_values(challengers, self.before, self.task, self.measure)
        return look_at_mean(*values, self.clusters_of(judged_keys(self.after, self.before)))

    def clusters_of(self, keys: Iterable[tuple[str, str]]) -> Clusters | None:
        """The clusters of samples that were taken together; None if none were, or if there are too few to judge by."""
        return _if_enough(clusters_of(keys, self.taken_together))

    @cached_property
    def evidence(self) -> Evidence | str:
        """The paired test of candidate and champion, or a reason, as a string, why they cannot be compared.

        Classes are tested by exact McNemar on accuracy, other tasks by the paired bootstrap of the policy's measure. Samples that
        were taken together count as one. Raises AskedWrongly if the measure is unknown or undefined on the samples.
        """
        return self._compare(NUM_RESAMPLES)

    def foresee(self) -> str:
        """Why not even this candidate can be promoted, in the verdict's words; '' if it can, as far as the test goes.

        A plan asks it of a candidate without a mistake, before there is any other.
        """
        if not self.after:
            return NO_LABEL.format(self.target)
        try:
            # What is out of reach does not depend on resamples.
            found = self._compare(1)
        except AskedWrongly as error:
            return str(error)
        if isinstance(found, str):
            return found
        return found.limits[0] if found.figures["best_p_value"] >= self.level.value else ""

    def _compare(self, num_resamples: int) -> Evidence | str:
        tables, name = (self.candidate, self.champion, self.after, self.before), self.champion_name
        grouped = clusters_of(self.after, self.taken_together)
        clusters = _if_enough(grouped)
        missing = missing_classes(self.task, self.after, self.classes.get(self.target, ()))
        found: Evidence | str
        if TASK_FACTS[self.task].tells == "class":
            constant = "" if self.champion else self.majority[self.target]
            found = compare_classes(
                *(*tables, self.policy, self.level),
                majority=constant,
                name=name,
                clusters=clusters,
                num_repeated=self.num_repeated,
                missing=missing,
            )
        else:
            found = compare_resampled(
                *(*tables, self.policy, self.level),
                task=self.task,
                name=name,
                clusters=clusters,
                num_repeated=self.num_repeated,
                missing=missing,
                num_resamples=num_resamples,
            )
        too_few = grouped is not None and clusters is None
        return replace(found, limits=(*found.limits, FEW_GROUPS)) if too_few and isinstance(found, Evidence) else found


def _if_enough(clusters: Clusters | None) -> Clusters | None:
    return clusters if clusters is not None and num_clusters(clusters) >= MIN_CLUSTERS else None


def rows_of(table: ScoreTable | None, target: str) -> Rows:
    """One target's rows of a table, each distinct image once; none without a table."""
    return {(row.digest, row.truth): row for row in table.rows if row.target == target} if table else {}
