"""What a job is asked and where its files lie: JSON both ways, without torch or Ray."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flows.errors import ASKED_WRONGLY
from flows.manifest import mask_files
from flows.records import DataVersion, Mask, Sample, Scored, ScoreTable, TrainedVariant, Weights, Work, Workers
from heads.spec import Variant

Kind = Literal["train", "score"]
# Raised when score tables gain rows or measures: older ones are made again.
SCORES_FORMAT = 3
SPLITS_OF: Mapping[Kind, tuple[str, ...]] = {"train": ("train", "val"), "score": ("test",)}


@dataclass(frozen=True)
class Tracking:
    """Where the job's driver writes runs: the address, the embedded server's artifacts, experiment, parent run, origin."""

    address: str
    artifacts: Path
    name: str
    parent: str
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Screening:
    """Of the works in contest the `keep` best by validation's `metric`, `<target>/<measure>`, go on into fine-tuning."""

    keep: int
    metric: str


@dataclass(frozen=True)
class Job:
    """A job on the cluster: train `works` (all of a plan's; finished ones are skipped), or score `bundles` on the holdout.

    `key` is equal for equal orders: a running job of that key is joined, and a half-done one is resumed. `features` is the
    feature store's folder or address; None: below the storage root.
    """

    kind: Kind
    key: str
    name: str
    storage: Path
    version: DataVersion
    classes: Mapping[str, Sequence[str]]
    workers: Workers
    works: tuple[Work, ...] = ()
    bundles: tuple[Path, ...] = ()
    tracking: Tracking | None = None
    screening: Screening | None = None
    features: Path | str | None = None

    @property
    def features_root(self) -> Path | str:
        """Where the feature store lies."""
        return self.features or self.storage / "features"

    @property
    def folder(self) -> Path:
        """Where `job.json` lies, and at the end `outcome.json` or `error.json`."""
        return self.storage / "jobs" / f"{self.kind}-{self.key}"

    @property
    def work_root(self) -> Path:
        """The folder of all works."""
        return self.storage / "work"


def begin(job: Job) -> Path:
    """The job's folder with its order written: `job.json`, and beside it the samples that it reads, with their masks."""
    samples = [s for s in job.version.samples if s.split in SPLITS_OF[job.kind]]
    named = {file: job.version.masks[file] for file in sorted(mask_files(samples)) if file in job.version.masks}
    tables = {
        "samples": [[s.digest, s.file, s.split, dict(s.labels), s.group, s.recipe] for s in samples],
        "masks": [[file, mask.digest, list(mask.pixels.items()), mask.recipe] for file, mask in named.items()],
    }
    order = {
        **{name: getattr(job, name) for name in ("kind", "key", "name")},
        "storage": str(job.storage),
        "features": str(job.features_root),
        "data": {
            "digest": job.version.digest,
            "revision": job.version.revision,
            "folder": str(job.version.data),
            "objects": [str(folder) for folder in job.version.objects],
        },
        "classes": {target: list(names) for target, names in job.classes.items()},
        "workers": asdict(job.workers),
        "works": [_work_order(work) for work in job.works],
        "bundles": [str(path) for path in job.bundles],
        "screening": None if job.screening is None else asdict(job.screening),
        "tracking": None if job.tracking is None else {**vars(job.tracking), "artifacts": str(job.tracking.artifacts)},
    }
    write_json(job.folder / "samples.json", tables)
    write_json(job.folder / "job.json", order)
    return job.folder


def read(job_file: Path) -> Job:
    """The job that `begin` wrote."""
    order = json.loads(job_file.read_text())
    tables = json.loads((job_file.parent / "samples.json").read_text())
    data = order["data"]
    version = DataVersion(
        digest=data["digest"],
        revision=data["revision"],
        samples=tuple(Sample(*row) for row in tables["samples"]),
        data=Path(data["folder"]),
        objects=tuple(Path(folder) for folder in data["objects"]),
        # Orders of before there were recipes lack them.
        masks={file: Mask(digest, dict(pixels), *recipe) for file, digest, pixels, *recipe in tables["masks"]},
    )
    tracking, screening = order["tracking"], order["screening"]
    return Job(
        kind=order["kind"],
        key=order["key"],
        name=order["name"],
        storage=Path(order["storage"]),
        # Orders of before the store had a place of its own lack it.
        features=order.get("features"),
        version=version,
        classes=order["classes"],
        workers=Workers(**order["workers"]),
        works=tuple(_read_work(work) for work in order["works"]),
        bundles=tuple(Path(path) for path in order["bundles"]),
        screening=None if screening is None else Screening(**screening),
        tracking=None if tracking is None else Tracking(**{**tracking, "artifacts": Path(tracking["artifacts"])}),
    )


def is_finished(work_root: Path, key: str) -> bool:
    """Whether a work has its result, or a failure that another try would only repeat; that file is written last."""
    return any((work_root / key / name).is_file() for name in ("result.json", "failure.json"))


def num_stored(job: Job) -> tuple[int, int]:
    """How many samples the job's members brought through frozen trunks into the feature store, and of how many."""
    counts = (read_json(file, {"num_samples": 0})["num_samples"] for file in job.folder.glob("stored-*.json"))
    done = sum(counts)
    return done, max(done, read_json(job.folder / "features.json", {"total": 0})["total"])


def flops_stored(job: Job) -> int:
    """The multiply-adds that the job's members spent on filling the feature store."""
    counts: list[float] = [read_json(file, {"flops": 0.0})["flops"] for file in job.folder.glob("stored-*.json")]
    return round(sum(counts))


def read_failure(storage: Path, work: Work) -> str | None:
    """Why a work failed for good, or None where it did not."""
    failure = read_json(storage / "work" / work.key / "failure.json")
    return None if failure is None else str(failure["reason"])


def epochs_done(storage: Path, works: Iterable[Work]) -> dict[str, int]:
    """How many epochs of each work are trained, by work key: for whoever shows progress."""
    done = {}
    for work in works:
        folder = storage / "work" / work.key
        if is_finished(storage / "work", work.key):
            done[work.key] = work.variant.fit.epochs
        else:
            done[work.key] = len(read_json(folder / "progress.json", {}).get("epochs", []))
    return done


def read_trained(storage: Path, work: Work, *, reused: bool) -> TrainedVariant:
    """A finished work as a value. Raises FileNotFoundError when it has no result."""
    folder = storage / "work" / work.key
    result = json.loads((folder / "result.json").read_text())
    names = ("metrics", "num_parameters", "num_trained_parameters", "num_forwarded", "seconds")
    measured = {name: result[name] for name in names}
    # Results of before these were counted lack them.
    measured |= {name: result.get(name, 0) for name in ("num_features_read", "gpu_seconds", "flops", "flops_alone")}
    return TrainedVariant(key=work.key, variant=work.variant, reused=reused, folder=folder, **measured)


def scores_file(storage: Path, bundle_digest: str, data_version: str) -> Path:
    """Where the score table of a bundle on a data version's holdout lies."""
    return storage / "scores" / f"{bundle_digest[:16]}-{data_version}-{SCORES_FORMAT}.json"


def read_scores(file: Path) -> ScoreTable:
    """The score table that a job wrote."""
    table = json.loads(file.read_text())
    rows = tuple(_read_row(row) for row in table["rows"])
    return ScoreTable(table["bundle_digest"], table["data_version"], rows, table["metrics"], table["tasks"])


def read_json(file: Path, missing: Any = None) -> Any:
    """The content of a JSON file, or `missing` where there is none."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return missing


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file that is there whole, on the disk, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    with new.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def write_error(job: Job, error: Exception) -> None:
    """Leaves `error.json`: the message for people, and whether the request was at fault; the first one stands."""
    asked_wrongly = isinstance(error, ASKED_WRONGLY)
    message = str(error) if asked_wrongly else "".join(traceback.format_exception(error))[-6000:]
    if not (job.folder / "error.json").exists():
        write_json(job.folder / "error.json", {"asked_wrongly": asked_wrongly, "message": message})


def _work_order(work: Work) -> dict[str, Any]:
    path = work.weights.path
    weights = {"digest": work.weights.digest, "path": None if path is None else str(path)}
    spec = work.variant.model_dump(mode="json")
    return {"key": work.key, "variant": spec, "weights": weights, "in_contest": work.in_contest}


def _read_work(order: Mapping[str, Any]) -> Work:
    path = order["weights"]["path"]
    weights = Weights(order["weights"]["digest"], None if path is None else Path(path))
    return Work(order["key"], Variant.model_validate(order["variant"]), weights, order["in_contest"])


def _read_row(row: Sequence[Any]) -> Scored:
    digest, target, truth, predicted, probability, probabilities, pixels = row
    counts = tuple((true, guess, count) for true, guess, count in pixels)
    return Scored(digest, target, truth, predicted, probability, probabilities, counts)
