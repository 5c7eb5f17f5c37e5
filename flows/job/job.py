"""A job for the cluster, as a value and as JSON; without torch or Ray."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flows.errors import AskedWrongly
from flows.job.job_folder import JobFolder, jobs_root
from flows.job.weights import fetch_weights, store_weights
from flows.local_copies import keep_here
from flows.places import Place, Root, as_root, open_place
from flows.records import SPLITS, DataVersion, Mask, Remote, Weights, Work, Workers
from flows.shared_rows import SharedRows
from flows.words import counted
from flows.work_folder import WorkFolder
from heads.spec import Variant

JobKind = Literal["train", "score", "fresh", "leaks", "robustness"]
# All that a job of this kind ever holds: what is not there can leak into nothing, whatever a training does.
SPLITS_OF: Mapping[JobKind, tuple[str, ...]] = {
    "train": ("train", "val"),
    "score": ("test",),
    "fresh": SPLITS,
    "leaks": SPLITS,
    "robustness": ("test",),
}


@dataclass(frozen=True)
class Tracking:
    """MLflow as the job's driver uses it: the address, an embedded MLflow's artifacts, experiment, parent run, runs' origin."""

    address: str
    artifacts: Path
    name: str
    parent: str
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Screening:
    """How many of the screened works go on to fine-tuning: the `keep` best by `metric` (`<target>/<measure>`) on validation."""

    keep: int
    metric: str


@dataclass(frozen=True)
class Job:
    """A job on the cluster: train `works` (all of a plan's; finished ones are skipped), score `bundles` on the holdout,
    or on `fresh` samples of any split that they were not made from, look for the holdout's pictures in train and val on the
    features that a work stores, or measure the robustness of `bundles` in reading `target`.

    `key` is equal for equal jobs: a running job of that key is joined, and a half-done one is resumed. `features` is the
    feature store's folder or address; None means `features/` under the storage root. Of the version a job keeps only the
    splits of its kind: a training never holds a test sample, and a scoring of the holdout no other. A training also fits a
    probe of `target` on the frozen trunk of `baseline`, whose key is the probe's, and, in the driver, the baseline that counts
    words under the key `counted`, if there are such. A training `in_driver` has no worker group: its works read stored features
    alone, and the driver trains them by itself. `storage` is a folder or an address in a bucket, and `bundles` are names of
    places below it, or of the file of a baseline that counts words.
    """

    kind: JobKind
    key: str
    name: str
    storage: Root
    version: DataVersion
    classes: Mapping[str, Sequence[str]]
    workers: Workers
    works: tuple[Work, ...] = ()
    bundles: tuple[str, ...] = ()
    tracking: Tracking | None = None
    screening: Screening | None = None
    features: Root | None = None
    target: str = ""
    baseline: Work | None = None
    counted: str = ""
    in_driver: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", self.version.only(SPLITS_OF[self.kind]))

    @property
    def place(self) -> Place:
        """The place of the storage root."""
        return open_place(self.storage)

    @property
    def features_root(self) -> Root:
        """The feature store's folder or address."""
        return self.features or as_root(self.place.within("features").address)

    @property
    def folder(self) -> JobFolder:
        """The job's folder, with the job and, at its end, the outcome."""
        return JobFolder(jobs_root(self.storage).within(f"{self.kind}-{self.key}"))

    def work_folder(self, work: Work) -> WorkFolder:
        """The folder of one of its works."""
        return WorkFolder.of(self.storage, work.key)

    def fetch_bundle(self, name: str) -> Path:
        """The bundle of that name below the storage root, as a folder of this machine. Raises AskedWrongly if it is gone."""
        found = keep_here(self.place.within(name))
        if found is None:
            raise AskedWrongly(f"{self.place.address}/{name} holds no bundle: it was removed meanwhile; retrain again")
        return found


def new_folder(storage: Root) -> JobFolder:
    """A folder for a driver that is started before its first job is known: it is handed that job there."""
    return JobFolder(jobs_root(storage).within(f"waiting-{secrets.token_hex(4)}"))


def write_job(job: Job) -> JobFolder:
    """Write the job, with the samples and masks that it reads, into its folder; returns the folder."""
    tables = {
        "samples": [[s.digest, s.file, s.split, dict(s.labels), s.group, s.recipe] for s in job.version.samples],
        "masks": [[file, mask.digest, list(mask.pixels.items()), mask.recipe] for file, mask in job.version.masks.items()],
    }
    fields = {
        **{name: getattr(job, name) for name in ("kind", "key", "name", "target")},
        "storage": str(job.storage),
        "features": str(job.features_root),
        "data": {
            "digest": job.version.digest,
            "revision": job.version.revision,
            "folder": str(job.version.data),
            "objects": [str(folder) for folder in job.version.objects],
            "remote": None if job.version.remote is None else asdict(job.version.remote),
        },
        "classes": {target: list(names) for target, names in job.classes.items()},
        # Left out if None, so that jobs without it keep their bytes.
        "workers": {name: value for name, value in asdict(job.workers).items() if value is not None},
        "works": [_work_fields(work) for work in job.works],
        "bundles": list(job.bundles),
        "baseline": None if job.baseline is None else _work_fields(job.baseline),
        **({"counted": job.counted} if job.counted else {}),
        "screening": None if job.screening is None else asdict(job.screening),
        "tracking": None if job.tracking is None else {**vars(job.tracking), "artifacts": str(job.tracking.artifacts)},
    }
    if job.in_driver:
        # Left out if not, so that jobs with workers keep their bytes.
        fields["in_driver"] = True
    store_weights(job.place, [work.weights for work in job.works])
    job.folder.write_job(fields, tables)
    return job.folder


def read_job(folder: JobFolder) -> Job:
    """The job that `write_job` wrote into this folder. Raises AskedWrongly if it holds samples of a split that it may not see."""
    fields, tables = folder.read_job()
    rows = SharedRows()
    data, samples = fields["data"], tuple(rows.sample(*row) for row in tables["samples"])
    if foreign := [sample for sample in samples if sample.split not in SPLITS_OF[fields["kind"]]]:
        raise AskedWrongly(
            f"{folder.job_file}: {counted(len(foreign), 'sample')} of the split {foreign[0].split!r} in a job of "
            f"the kind {fields['kind']}, e.g. {foreign[0].file}; allowed: {', '.join(SPLITS_OF[fields['kind']])}. Remove "
            f"{folder.address} and start the retraining again"
        )
    version = DataVersion(
        digest=data["digest"],
        revision=data["revision"],
        samples=samples,
        data=Path(data["folder"]),
        objects=tuple(Path(folder) for folder in data["objects"]),
        # Missing in job files of earlier versions.
        remote=Remote(**data["remote"]) if data.get("remote") else None,
        # Masks, like samples, have no recipe in job files of earlier versions.
        masks={file: Mask(digest, dict(pixels), *recipe) for file, digest, pixels, *recipe in tables["masks"]},
    )
    tracking, screening, baseline = fields["tracking"], fields["screening"], fields.get("baseline")
    place = open_place(as_root(fields["storage"]))
    return Job(
        kind=fields["kind"],
        key=fields["key"],
        name=fields["name"],
        storage=as_root(fields["storage"]),
        # Missing in job files of earlier versions.
        features=fields.get("features"),
        target=fields.get("target", ""),
        in_driver=fields.get("in_driver", False),
        baseline=None if baseline is None else _read_work(baseline, place),
        counted=fields.get("counted", ""),
        version=version,
        classes=fields["classes"],
        workers=Workers(**fields["workers"]),
        works=tuple(_read_work(work, place) for work in fields["works"]),
        bundles=tuple(fields["bundles"]),
        screening=None if screening is None else Screening(**screening),
        tracking=None if tracking is None else Tracking(**{**tracking, "artifacts": Path(tracking["artifacts"])}),
    )


def _work_fields(work: Work) -> dict[str, object]:
    path = work.weights.path
    weights = {"digest": work.weights.digest, "path": None if path is None else str(path)}
    spec = work.variant.model_dump(mode="json")
    return {"key": work.key, "variant": spec, "weights": weights, "is_screened": work.is_screened}


def _read_work(fields: Mapping[str, Any], storage: Place) -> Work:
    path = fields["weights"]["path"]
    variant = Variant.model_validate(fields["variant"])
    weights = Weights(fields["weights"]["digest"], None if path is None else Path(path))
    weights = fetch_weights(storage, weights, in_folder=variant.modality == "text")
    # Job files of earlier versions have another key.
    is_screened = fields["is_screened"] if "is_screened" in fields else fields["in_contest"]
    return Work(fields["key"], variant, weights, is_screened)
