"""The report of a retraining: the value that `--json` prints, and that is kept for the next time the same is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from flows import tracking
from flows.files import read_value
from flows.places import StoredFile
from flows.records import Finding, Verdict
from heads.bert_size import modality_of
from heads.catalogue import Modality, Task


@dataclass(frozen=True, kw_only=True)
class NamedVariant:
    """A variant by its names, the design of each target's head, and its MLflow run."""

    variant_id: str
    label: str
    backbone: str
    heads: Mapping[str, str]
    freeze: str
    run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ReportedVariant(NamedVariant):
    """A trained variant: its measures (`<split>/<target>/<measure>`), what it cost, and its run's page in MLflow."""

    reused: bool
    metrics: Mapping[str, float]
    num_trained_parameters: int
    # Missing in reports of earlier versions.
    num_forwarded: int = 0
    num_features_read: int = 0
    seconds: float
    gpu_seconds: float = 0.0
    page: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedFailure(NamedVariant):
    """A variant that failed for good, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ReportedBaseline:
    """A plain model beside the variants: a logistic `probe`, `tfidf`, a `word_list`, or the `majority` answer; its measures."""

    kind: str
    label: str
    metrics: Mapping[str, float]
    num_parameters: int = 0
    num_samples: int = 0
    penalty: float | None = None
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class ReportedModel:
    """The candidate's version in the registry, and its page in MLflow."""

    name: str
    version: str
    aliases: tuple[str, ...]
    page: str | None = None


@dataclass(frozen=True)
class Counts:
    """What a retraining did, in numbers; FLOPs are multiply-adds of backbones.

    `samples_fetched` counts samples and masks that the training read from the data remote. `flops_saved` compares with one job a
    variant without stored features.
    """

    samples: int = 0
    trunk_forwards: int = 0
    features_read: int = 0
    flops_done: int = 0
    flops_saved: int = 0
    variants_trained: int = 0
    variants_reused: int = 0
    # Missing in reports of earlier versions.
    samples_fetched: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A retraining from its data version to its verdict.

    `key` is the hash of plan and data version; `metric` ranks the variants, `tasks` has the task of each target. `candidate`
    is a variant id, `why` says why it is this one, `holdout` has its measures on the holdout, to hundredths while the gate keeps
    silent about them; the verdict is on it, or on the version `judged`, an earlier candidate. `champion` is the version that is
    champion now. `seconds` are by stage. `page`, also of variants and model, is an address in MLflow, None if there is no server.
    """

    name: str
    key: str
    metric: str
    # Empty in reports of earlier versions.
    tasks: Mapping[str, Task]
    data_version: str
    variants: tuple[ReportedVariant, ...]
    failed: tuple[ReportedFailure, ...]
    candidate: str
    holdout: Mapping[str, float]
    verdict: Verdict
    model: ReportedModel | None
    champion: str | None
    counts: Counts
    seconds: Mapping[str, float]
    # Missing in reports of earlier versions.
    why: str = ""
    run_id: str | None = None
    experiment_id: str | None = None
    page: str | None = None
    baseline: ReportedBaseline | None = None
    judged: str | None = None
    # The others, if there are several: `baseline` is the best of them on validation.
    other_baselines: tuple[ReportedBaseline, ...] = ()

    @property
    def modality(self) -> Modality:
        """What kind of sample its variants read, which is also the word for one."""
        return modality_of(self.variants[0].backbone) if self.variants else "image"


def report_json(report: Report) -> Mapping[str, Any]:
    """The object that `--json` prints and the file holds: every field under its name."""
    return asdict(report)


def read_report(file: StoredFile) -> Report | None:
    """The report that a file holds, None if there is none."""
    content = file.read_json()
    if content is None:
        return None
    model, verdict, baseline = content["model"], content["verdict"], content.get("baseline")
    typed = {
        "tasks": content.get("tasks", {}),
        "variants": tuple(read_value(ReportedVariant, variant) for variant in content["variants"]),
        "failed": tuple(read_value(ReportedFailure, failure) for failure in content["failed"]),
        "verdict": _read_verdict(verdict),
        "model": model and read_value(ReportedModel, model | {"aliases": tuple(model["aliases"])}),
        "counts": read_value(Counts, content["counts"]),
        "baseline": baseline and read_value(ReportedBaseline, baseline),
        "other_baselines": tuple(read_value(ReportedBaseline, one) for one in content.get("other_baselines", ())),
    }
    return read_value(Report, content | typed)


def _read_verdict(content: Mapping[str, Any]) -> Verdict:
    findings = (finding | {"notes": tuple(finding["notes"])} for finding in content.get("findings", ()))
    read = {"reasons": tuple(content["reasons"]), "findings": tuple(read_value(Finding, finding) for finding in findings)}
    return read_value(Verdict, {**content, **read})


def write_report(file: StoredFile, report: Report) -> None:
    """Write a report where `read_report` finds it."""
    file.write_json(report_json(report))


def with_pages(report: Report, address: str) -> Report:
    """The report with the addresses of its runs' and its version's pages in MLflow; None if MLflow is no server."""

    def page(run_id: str | None) -> str | None:
        known = report.experiment_id and run_id
        return tracking.run_page(address, str(report.experiment_id), str(run_id)) if known else None

    model = report.model
    return replace(
        report,
        page=page(report.run_id),
        variants=tuple(replace(variant, page=page(variant.run_id)) for variant in report.variants),
        model=model and replace(model, page=tracking.version_page(address, model.name, model.version)),
    )
