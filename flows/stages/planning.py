"""The data and plan stages: which data version, which works on it, and what is left of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from flows import job
from flows import plan as plans
from flows.errors import AskedWrongly
from flows.plan import Plan
from flows.records import DataVersion, Weights, Work
from flows.settings import Settings
from flows.stages.session import Desk
from flows.workspace import check_turned

LOST = "the data version that data.dvc named could not be had here; the new one holds this source alone"


_PLANNED: ContextVar[Agenda | None] = ContextVar("planned", default=None)


@dataclass(frozen=True)
class Agenda:
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
        return job.WorkFolder.of(settings.storage, work.key).is_finished()

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each target that the plan's variants learn, in the order of its head's outputs."""
        return {target.column: plans.class_names(target, self.version) for target in plans.targets_of(self.plan, self.version)}


@dataclass(frozen=True)
class Quarantined:
    """An image that was set aside, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Ingested:
    """What an ingest did, in numbers of samples, and the data version that it made, by digest and git revision."""

    added: int
    updated: int
    removed: int
    unchanged: int
    quarantined: tuple[Quarantined, ...]
    warnings: tuple[str, ...]
    samples: int
    data_version: str
    revision: str


def ingest(
    settings: Settings,
    source: str,
    *,
    mirror: bool = False,
    max_removed_share: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """What bringing a source in changed, and the data version that it made; None leaves a mirror its usual limit."""
    from flows import dataset, landing

    workspace = dataset.open_workspace(settings.workspace)
    dataset.check_ready(workspace)
    # A fresh clone, or one that pulled, holds other data than `data.dvc` names: what is new is new beside the latter.
    pointer = workspace / "data.dvc"
    before = pointer.read_text() if pointer.exists() and not dataset.restore(workspace) else None
    admit = partial(dataset.check_names, workspace)
    own = [settings.storage, *([settings.features] if isinstance(settings.features, Path) else [])]
    report = landing.ingest(
        source,
        workspace / "data",
        mirror=mirror,
        max_removed_share=landing.MAX_REMOVED_SHARE if max_removed_share is None else max_removed_share,
        own=own,
        on_progress=on_progress,
        admit=admit,
    )
    version = dataset.record_version(workspace, f"Data from {source}")
    lost = before is not None and pointer.read_text() != before
    return Ingested(
        added=report.added,
        updated=report.updated,
        removed=report.removed,
        unchanged=report.unchanged,
        quarantined=tuple(Quarantined(file, reason) for file, reason in report.quarantined),
        warnings=(*report.warnings, *([LOST] if lost else [])),
        samples=len(version.samples),
        data_version=version.digest,
        revision=version.revision,
    )


def version_data(desk: Desk, source: str | None) -> DataVersion:
    """The workspace's data version, with what is new at `source` brought in first."""
    from flows import dataset

    if source:
        found = ingest(desk.settings, source)
        desk.say(f"{source}: {found.added} added, {found.updated} updated, {len(found.quarantined)} set aside")
    version = dataset.read_version(desk.settings.workspace)
    desk.say(f"Data version {version.digest[:12]}: {len(version.samples)} samples")
    return version


def plan_works(plan: Plan, version: DataVersion) -> Agenda:
    """The works of a plan on a data version, with the weights found and checked.

    Raises AskedWrongly on a plan that the data does not serve, WeightsError on a weights file that does not fit.
    """
    plans.check_data(plan, version)
    check_turned(version)
    variants = plans.expand(plan, version)
    weights = {name: find_weights(plan.weights, name) for name in dict.fromkeys(v.backbone for v in variants)}
    contests = plans.contest(plan, version, variants)
    works = tuple(
        Work(
            plans.work_key(v.variant_id, weights[v.backbone].digest, version.digest, contests.get(v.variant_id, "")),
            v,
            weights[v.backbone],
            v.variant_id in contests,
        )
        for v in variants
    )
    key = plans.retraining_key(plan, version, works)
    return Agenda(plan, version, works, plans.primary_metric(plan, version), key)


@contextlib.contextmanager
def planned(agenda: Agenda | None) -> Iterator[None]:
    """Let a retraining in this block take this agenda, where it asks for the same plan on the same data version."""
    token = _PLANNED.set(agenda)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def make_agenda(desk: Desk, version: DataVersion) -> Agenda:
    """The works of the desk's plan; says how many are left."""
    agenda = _PLANNED.get()
    if agenda is None or agenda.plan != desk.plan or _identity(agenda.version) != _identity(version):
        agenda = plan_works(desk.plan, version)
    left = sum(not agenda.is_done(desk.settings, work) for work in agenda.works)
    desk.say(f"{len(agenda.works)} variants, {left} left to train")
    return agenda


def _identity(version: DataVersion) -> tuple[str, str, Path]:
    return version.digest, version.revision, version.data


def find_weights(named: str, backbone: str) -> Weights:
    """The first weights of a backbone: none, torchvision's ImageNet ones (downloaded once), or a file that fits it."""
    if named == "none":
        return Weights("none")
    from heads import backbones

    path = backbones.imagenet_weights(backbone) if named == "imagenet" else Path(named).absolute()
    return Weights(backbones.check_weights(backbone, path), path)


def why_failed(settings: Settings, work: Work) -> str | None:
    """Why a work failed for good, or None where it did not."""
    failure = job.WorkFolder.of(settings.storage, work.key).read_failure()
    return failure.reason if failure else None


def failures(settings: Settings, agenda: Agenda) -> dict[str, str]:
    """Why works failed for good, by work key. Raises AskedWrongly where all of them did."""
    found = {work.key: why_failed(settings, work) for work in agenda.works}
    reasons = {key: reason for key, reason in found.items() if reason}
    if len(reasons) == len(agenda.works):
        told = "; ".join(f"{agenda.label(work)}: {reasons[work.key]}" for work in agenda.works)
        raise AskedWrongly(f"every variant of the plan failed, so nothing can be ranked: {told}")
    return reasons


def majority_classes(version: DataVersion) -> dict[str, str]:
    """The most frequent cell of each target in `train`, masks left out; ties go to the first by name."""
    found = {}
    for target in version.targets:
        if plans.find_task(version, target) == "segmentation":
            continue
        counts = Counter(name for s in version.samples if s.split == "train" and (name := s.labels[target]) is not None)
        if counts:
            found[target] = min(counts, key=lambda name: (-counts[name], name))
    return found
