"""A scoring job: bundles read the holdout, sample by sample."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.cluster import workers
from flows.job.job import Job
from flows.job.job_folder import JobOutcome
from flows.job.scores import scores_file, write_scores
from flows.records import ScoreTable
from flows.workspace import locate, locate_mask
from heads import bundle as bundles
from heads.bundle import Answer, Bundle
from heads.catalogue import TASK_FACTS
from heads.data.decoding import decode_mask
from heads.spec import Head
from heads.tasks.rows import Scored
from heads.tasks.table import TASKS

# Below it a second process takes longer to start than the first to finish.
MIN_SHARD_IMAGES = 1000
BATCH_SIZE = 32


@dataclass(frozen=True)
class Item:
    """A holdout image to read: its digest, its file, by target its cell in the manifest, and the files of its masks.

    `as_stored` are the targets whose masks are turned with it.
    """

    digest: str
    file: str
    truths: Mapping[str, str | None]
    masks: Mapping[str, str]
    as_stored: tuple[str, ...] = ()


def score(job: Job) -> JobOutcome:
    """The outcome of a scoring job: the file of each bundle's score table, by bundle path. Runs in the job's driver.

    A table has no rows where the holdout has no label of what the bundle predicts. Raises BundleError on a damaged bundle.
    """
    files = {}
    for path in job.bundles:
        digest = bundles.digest(path)
        file = scores_file(job.storage, digest, job.version.digest)
        if not file.exists():
            made = bundles.load(path)
            rows = _read_holdout(job, path, made)
            tasks = {head.target: head.task for head in made.variant.heads}
            plain = {target for target, task in tasks.items() if TASK_FACTS[task].tells == "class"}
            # Every class's probability is only told where a verdict asks for it.
            kept = (replace(row, probabilities={}, pixels=()) if row.target in plain else row for row in rows)
            write_scores(file, ScoreTable(digest, job.version.digest, tuple(kept), measure(rows, made), tasks))
        files[str(path)] = str(file)
    return JobOutcome(scores=files)


def score_shard(path: str, items: Sequence[Item], uses_gpu: bool, num_threads: int) -> list[Scored]:
    """What the bundle reads in these images: a row for each label they have. Runs in a worker, or in the driver."""
    torch.set_num_threads(num_threads)
    bundle = bundles.load(Path(path), "cuda" if uses_gpu else "cpu")
    heads = {head.target: head for head in bundle.variant.heads}
    rows: list[Scored] = []
    # By batches, since masks of all images at their full size could fill memory.
    for batch in _batches(items):
        for item, answers in zip(batch, bundle.predict([Path(item.file) for item in batch], BATCH_SIZE), strict=True):
            known = ((target, truth) for target in answers if (truth := item.truths.get(target)) is not None)
            rows += [_row(item, heads[target], truth, answers[target]) for target, truth in known]
    return rows


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE))


def _row(item: Item, head: Head, truth: str, answer: Answer) -> Scored:
    def read_mask() -> np.ndarray[Any, Any]:
        mask, as_stored = Path(item.masks[head.target]), head.target in item.as_stored
        return decode_mask(mask, Path(item.file), as_stored=as_stored)

    return TASKS[head.task].judge(item.digest, answer, truth, head, read_mask)


def measure(rows: Sequence[Scored], bundle: Bundle) -> dict[str, float]:
    """`<target>/<measure>` of every target that has rows: the measures of validation, of whatever classes either side knows.

    A class that the bundle does not know is one that it never predicts. Label sets are told at the bundle's thresholds, and
    masks measured pixel by pixel over all images together, at their own size.
    """
    metrics: dict[str, float] = {}
    for head in bundle.variant.heads:
        mine = [row for row in rows if row.target == head.target]
        if mine:
            task, names = TASKS[head.task], bundle.classes[head.target]
            found = task.measure_rows(mine, names, bundle.thresholds.get(head.target))
            metrics |= {f"{head.target}/{name}": value for name, value in found.items()}
    return metrics


def _read_holdout(job: Job, path: Path, bundle: Bundle) -> list[Scored]:
    masks = {head.target for head in bundle.variant.heads if TASK_FACTS[head.task].tells == "pixels"}
    items = []
    for sample in job.version.samples:
        cells = {t: cell for t, cell in sample.labels.items() if t in masks and cell}
        places = {t: str(locate_mask(job.version, cell)) for t, cell in cells.items()}
        as_stored = tuple(t for t, cell in cells.items() if job.version.masks[cell].as_stored)
        items.append(Item(sample.digest, str(locate(job.version, sample)), dict(sample.labels), places, as_stored))
    group, uses_gpu = job.workers, job.workers.gpus_per_worker > 0
    num_shards = max(1, min(group.count, len(items) // MIN_SHARD_IMAGES))
    if num_shards == 1 and not uses_gpu:
        # Here, with the cores of the whole group.
        num_threads = max(1, min(int(group.count * group.cpus_per_worker), os.cpu_count() or 1))
        rows = score_shard(str(path), items, uses_gpu, num_threads)
    else:
        num_threads = max(1, int(group.cpus_per_worker))
        workers.join(group)
        shards = [(str(path), items[i::num_shards], uses_gpu, num_threads) for i in range(num_shards)]
        rows = [row for shard in workers.map_shards(score_shard, shards, workers=group) for row in shard]
    return sorted(rows, key=lambda row: (row.digest, row.target, row.truth, row.predicted, row.probability))
