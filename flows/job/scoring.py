"""A scoring job: the predictions of bundles on the holdout or on fresh samples, one by one, and their measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flows.baselines import TFIDF
from flows.cluster import workers
from flows.errors import AskedWrongly
from flows.job.job import Job
from flows.job.outcome import JobOutcome
from flows.job.scores import scores_file, write_scores
from flows.kept import keep_here
from flows.places import open_place
from flows.records import DataVersion, Sample, ScoreTable
from flows.sample_files import expect, files_of, locate, locate_mask
from heads import bundle as bundles
from heads.bundle import Answer
from heads.catalogue import TASK_FACTS
from heads.data.decoding import decode_mask
from heads.spec import Head
from heads.tasks.measures import TOP
from heads.tasks.rows import Scored
from heads.tasks.table import TASKS

# With fewer, a second process would take longer to start than the first to finish.
MIN_SHARD_IMAGES = 1000
BATCH_SIZE = 32


class Scorable(Protocol):
    """What is scored: a bundle, or the TF-IDF of a plan."""

    @property
    def heads(self) -> tuple[Head, ...]: ...
    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def thresholds(self) -> Mapping[str, tuple[float, ...]]: ...
    def predict(self, samples: Any, batch_size: int = 32) -> list[dict[str, Answer]]: ...


def score(job: Job) -> JobOutcome:
    """Run a scoring job; its outcome names the file of each bundle's score table. Runs in the job's driver.

    A table has no rows of a target that no holdout sample has a label for. Raises BundleError on a damaged bundle.
    """
    files = {}
    for name in job.bundles:
        digest = _digest(job, name)
        file = scores_file(job.storage, digest, job.version.digest)
        if not file.exists():
            model = open_model(job.place.within(name).address)
            rows = _read_holdout(job, name)
            tasks = {head.target: head.task for head in model.heads}
            plain = {target for target, task in tasks.items() if TASK_FACTS[task].tells == "class"}
            # Verdicts on classes use the predicted class alone: the other probabilities would only fill the disk.
            told = _likeliest if job.kind == "fresh" else _none
            kept = (replace(row, probabilities=told(row), pixels=()) if row.target in plain else row for row in rows)
            write_scores(file, ScoreTable(digest, job.version.digest, tuple(kept), measure(rows, model), tasks))
        files[name] = file.address
    return JobOutcome(scores=files)


def _digest(job: Job, name: str) -> str:
    # TF-IDF is named by its key, as the flow names it.
    return name.split("/")[-2] if name.endswith(TFIDF) else bundles.digest(job.fetch_bundle(name))


def open_model(address: str, device: str = "cpu") -> Scorable:
    """The bundle at an address, or the TF-IDF in a file. Raises BundleError on a damaged bundle, AskedWrongly if it is gone."""
    if not address.endswith(TFIDF):
        path = keep_here(open_place(address))
        assert path is not None, "the driver has read it"
        return bundles.load(path, device)
    from flows.job.tfidf import read_tfidf

    folder, _, name = address.rpartition("/")
    content = open_place(folder).read(name)
    if content is None:
        raise AskedWrongly(f"{address} is gone: remove what lies beside it, so that the next training fits it again")
    return read_tfidf(content)


def _none(_: Scored) -> dict[str, float]:
    return {}


def _likeliest(row: Scored) -> dict[str, float]:
    """The likeliest classes of a row, as many as `top5` counts; of equal ones the later goes first, as in that measure."""
    rising = sorted(row.probabilities.items(), key=lambda told: told[1])
    return dict(rising[::-1][:TOP])


def score_shard(address: str, version: DataVersion, uses_gpu: bool, num_threads: int) -> list[Scored]:
    """A score row for each label of the version's images, predicted by the model at the address. In a worker, or the driver."""
    torch.set_num_threads(num_threads)
    model = open_model(address, "cuda" if uses_gpu else "cpu")
    heads = {head.target: head for head in model.heads}
    rows: list[Scored] = []
    expect(version, files_of(version, version.samples))
    # In batches: the masks of all images, at full size, could fill the memory.
    for start in range(0, len(version.samples), BATCH_SIZE):
        batch = version.samples[start : start + BATCH_SIZE]
        files = [locate(version, sample) for sample in batch]
        for sample, file, answers in zip(batch, files, model.predict(files, BATCH_SIZE), strict=True):
            known = ((target, truth) for target in answers if (truth := sample.labels.get(target)) is not None)
            rows += [_row(version, sample, file, heads[target], truth, answers[target]) for target, truth in known]
    return rows


def _row(version: DataVersion, sample: Sample, file: Path | bytes, head: Head, truth: str, answer: Answer) -> Scored:
    def read_mask() -> np.ndarray[Any, Any]:
        return decode_mask(locate_mask(version, truth), file, as_stored=version.masks[truth].as_stored)

    return TASKS[head.task].judge(sample.digest, answer, truth, head, read_mask)


def measure(rows: Sequence[Scored], model: Scorable) -> dict[str, float]:
    """The measures `<target>/<measure>` of every target that has rows, the same as on validation.

    Classes may be unknown to the model, which then never predicts them, or absent from the rows. Label sets are decided by
    the model's thresholds; masks are measured pixel by pixel over all images together, at their own size.
    """
    metrics: dict[str, float] = {}
    for head in model.heads:
        mine = [row for row in rows if row.target == head.target]
        if mine:
            task, names = TASKS[head.task], model.classes[head.target]
            measures = task.measure_rows(mine, names, model.thresholds.get(head.target))
            metrics |= {f"{head.target}/{name}": value for name, value in measures.items()}
    return metrics


def _read_holdout(job: Job, name: str) -> list[Scored]:
    address = job.place.within(name).address
    group, uses_gpu, samples = job.workers, job.workers.gpus_per_worker > 0, job.version.samples
    num_shards = max(1, min(group.count, len(samples) // MIN_SHARD_IMAGES))
    if num_shards == 1 and not uses_gpu:
        # In this process, with the cores of the whole group.
        rows = score_shard(address, job.version, uses_gpu, workers.cores_of(group))
    else:
        num_threads = max(1, int(group.cpus_per_worker))
        workers.join(group)
        parts = [replace(job.version, samples=samples[i::num_shards]) for i in range(num_shards)]
        shards = [(address, part, uses_gpu, num_threads) for part in parts]
        rows = [row for shard in workers.map_shards(score_shard, shards, workers=group) for row in shard]
    return sorted(rows, key=lambda row: (row.digest, row.target, row.truth, row.predicted, row.probability))
