"""What arrived since a challenger and the champion were made: samples that are a test to both, each used once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flows import dataset, job, mlflow_tags
from flows.errors import AskedWrongly
from flows.gate.clusters import MIN_CLUSTERS
from flows.gate.fresh import FreshAccount
from flows.model_version import ModelVersion
from flows.places import Root, StoredFile
from flows.records import DataVersion, Sample
from flows.registry import LedgerEntry
from flows.settings import Settings
from flows.stages.values import WorkPlan
from flows.words import counted


@dataclass(frozen=True)
class Arrived:
    """The labelled samples that neither model's data has and that were not bet on; `words` say so where there are none."""

    samples: tuple[Sample, ...]
    words: str


def find_challenger(versions: Iterable[ModelVersion], champion: ModelVersion, work_key: str) -> ModelVersion | None:
    """The newest version that came after the champion, is not the work being judged, and was not taken back; None without one."""
    later = [
        version
        for version in versions
        if int(version.version) > int(champion.version) and version.work_key != work_key and not version.is_withdrawn
    ]
    return max(later, key=lambda version: int(version.version), default=None)


def bets_before(
    history: Sequence[LedgerEntry], champion: ModelVersion, challenger: ModelVersion, data_version: str
) -> list[LedgerEntry]:
    """The verdicts that bet on new samples in any reign of the champion, oldest first.

    The verdict on this challenger and data version is left out: a retraining that was killed after it comes to the same again.
    """
    own = (challenger.version, data_version)
    return [
        entry
        for entry in history
        if entry.fresh and entry.champion_before == champion.version and (entry.version, _data_of(entry)) != own
    ]


def fresh_account_of(
    history: Sequence[LedgerEntry],
    versions: Mapping[str, ModelVersion],
    champion: ModelVersion,
    storage: Root,
    bets: Sequence[LedgerEntry],
    *,
    metric: str,
) -> FreshAccount:
    """The account of the champion's reign by a measure, from these bets.

    It begins anew with a challenger that was promoted and then taken back: that one's evidence is no other's.
    """
    over = [entry for entry in history if entry.champion_before == champion.version]
    since = max((entry.time for entry in over if entry.promoted), default=-math.inf)
    counted_bets = [entry for entry in bets if entry.time > since and entry.metric == metric]
    files = [[_table_of(entry, versions.get(which), storage) for which in _pair(entry)] for entry in counted_bets]
    nights = tuple(
        (job.read_scores(new), job.read_scores(old)) for new, old in files if new and old and new.exists() and old.exists()
    )
    num_looks = sum(entry.is_look for entry in over if entry.kind == "verdict" and entry.metric in ("", metric))
    return FreshAccount(nights, len(files) - len(nights), num_looks)


def find_arrived(
    settings: Settings,
    work_plan: WorkPlan,
    models: Sequence[ModelVersion],
    bets: Sequence[LedgerEntry],
    versions: Mapping[str, ModelVersion],
) -> Arrived:
    """What is new to these models. A group is new as a whole or not at all, since its samples resemble each other.

    Raises AskedWrongly if the samples that a model was made from, or that were bet on, are not known on this machine.
    """
    target = work_plan.target
    seen = [sample for model in models for sample in _samples_of(settings, model)]
    known = {sample.digest for sample in seen}.union(*(_bet_on(settings, entry, versions) for entry in bets))
    groups = taken_together(work_plan.version)
    known_groups = {sample.group for sample in seen if sample.group} | {groups[digest] for digest in known & groups.keys()}
    came = [s for s in work_plan.version.samples if s.digest not in known and s.labels[target] is not None]
    samples = tuple(sample for sample in came if groups.get(sample.digest) not in known_groups)
    names = " and ".join(f"version {model.version}" for model in models)
    words = f"no label of {target!r} arrived since {names} were made: there is nothing to judge by"
    if came:
        words = (
            f"{counted(len(came), 'label')} of {target!r} arrived since {names} were made, of groups that they know already: "
            "there is nothing to judge by"
        )
    return Arrived(samples, words)


def taken_together(version: DataVersion) -> dict[str, str]:
    """The group of each sample that was taken together with others, by digest; none where there are too few to judge by."""
    groups = {sample.digest: sample.group for sample in version.samples if sample.group}
    return groups if len(set(groups.values())) >= MIN_CLUSTERS else {}


def _samples_of(settings: Settings, model: ModelVersion) -> tuple[Sample, ...]:
    if not model.data_version:
        raise AskedWrongly(
            f"it is not known what version {model.version} was made from: it has no tag {mlflow_tags.DATA_VERSION}"
        )
    return _read(settings, model.data_version, f"version {model.version} was made from")


def _bet_on(settings: Settings, entry: LedgerEntry, versions: Mapping[str, ModelVersion]) -> set[str]:
    """The digests that a verdict bet on; if its scores are gone, of all that its data version had."""
    table = _table_of(entry, versions.get(entry.version), settings.root)
    if table and table.exists():
        return {row.digest for row in job.read_scores(table).rows}
    return {sample.digest for sample in _read(settings, _data_of(entry), f"version {entry.version} was judged by")}


def _read(settings: Settings, digest: str, what: str) -> tuple[Sample, ...]:
    try:
        return dataset.read_samples(settings.workspace, digest)
    except AskedWrongly as error:
        raise AskedWrongly(
            f"the samples that {what} are not known on this machine (data version {digest}); `dvc fetch --all-commits` in "
            f"{settings.workspace} brings them, if a remote has them"
        ) from error


def _data_of(entry: LedgerEntry) -> str:
    return entry.fresh.rpartition("-")[0]


def _pair(entry: LedgerEntry) -> tuple[str, str]:
    return entry.version, str(entry.champion_before)


def _table_of(entry: LedgerEntry, version: ModelVersion | None, storage: Root) -> StoredFile | None:
    return job.scores_file(storage, version.bundle_digest, entry.fresh) if version and version.bundle_digest else None
