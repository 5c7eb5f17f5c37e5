"""A scoring job: the predictions of bundles on the holdout or on fresh samples, one by one, and their measures."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch

from flows.baselines import TFIDF, baseline_key, is_counted
from flows.cluster import workers
from flows.errors import AskedWrongly
from flows.job.holdout.scores import scores_file, write_scores
from flows.job.job import Job
from flows.job.outcome import JobOutcome
from flows.job.tfidf import read_tfidf
from flows.job.word_list import read_word_list
from flows.local_copies import keep_here
from flows.places import open_place
from flows.records import DataVersion, Sample, ScoreTable
from flows.sample_files import files_of, locate, locate_mask, prefetch
from heads import bundle as bundles
from heads.bundle import Answer, Bundle, predict_together, share_backbones
from heads.catalogue import TASK_FACTS, Modality
from heads.data.decoding import decode_mask
from heads.spec import Head
from heads.tasks.measures import TOP
from heads.tasks.rows import Scored
from heads.tasks.table import TASKS

# With fewer, a second process would take longer to start than the first to finish; a text is read at once, and is shorter.
MIN_SHARD_SAMPLES: Mapping[Modality, int] = {"image": 1000, "text": 5000}
BATCH_SIZE = 32
# The least that one of several threads forwards at once.
MIN_BATCH_SIZE = 2


class Scorable(Protocol):
    """What is scored: a bundle, or what counts the words of a plan's texts."""

    @property
    def heads(self) -> tuple[Head, ...]: ...
    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def thresholds(self) -> Mapping[str, tuple[float, ...]]: ...
    def predict(self, samples: Any, batch_size: int = 32) -> list[dict[str, Answer]]: ...


# The numbers of a batch's samples, and the answers of each model for these.
BatchAnswers = tuple[Sequence[int], Sequence[Sequence[Mapping[str, Answer]]]]


def score(job: Job) -> JobOutcome:
    """Run a scoring job; its outcome names the file of each bundle's score table. Runs in the job's driver.

    A table has no rows of a target that no holdout sample has a label for. Raises BundleError on a damaged bundle.
    """
    digests = {name: _digest(job, name) for name in job.bundles}
    files = {name: scores_file(job.storage, digest, job.version.digest) for name, digest in digests.items()}
    models = {name: open_model(job.place.within(name).address) for name, file in files.items() if not file.exists()}
    num_forwarded = 0
    for group in share_trunks(models):
        for name, rows in zip(group, _read_holdout(job, group), strict=True):
            write_scores(files[name], _table(job, digests[name], group[name], rows))
        num_forwarded += len(job.version.samples) * _forwards(group.values())
    return JobOutcome(scores={name: file.address for name, file in files.items()}, num_forwarded=num_forwarded)


def share_trunks(models: Mapping[str, Scorable]) -> list[dict[str, Scorable]]:
    """The models, grouped by the backbone that they share: the samples run through it once for all models of a group."""
    bundled = {name: model for name, model in models.items() if isinstance(model, Bundle)}
    names = {id(model): name for name, model in bundled.items()}
    groups: list[dict[str, Scorable]] = [
        {names[id(model)]: model for model in group} for group in share_backbones(list(bundled.values()))
    ]
    return groups + [{name: model} for name, model in models.items() if name not in bundled]


def _forwards(group: Iterable[Scorable]) -> int:
    """How often a sample is forwarded for a group: to count words forwards none."""
    return int(any(isinstance(model, Bundle) for model in group))


def _table(job: Job, digest: str, model: Scorable, rows: Sequence[Scored]) -> ScoreTable:
    tasks = {head.target: head.task for head in model.heads}
    plain = {target for target, task in tasks.items() if TASK_FACTS[task].tells == "class"}
    # Verdicts on classes use the predicted class alone: the other probabilities would only fill the disk.
    told = _likeliest if job.kind == "fresh" else _none
    kept = (replace(row, probabilities=told(row), pixels=()) if row.target in plain else row for row in rows)
    return ScoreTable(digest, job.version.digest, tuple(kept), measure(rows, model), tasks)


def _digest(job: Job, name: str) -> str:
    return baseline_key(name) if is_counted(name) else bundles.digest(job.fetch_bundle(name))


def open_model(address: str, device: str = "cpu") -> Scorable:
    """The bundle at an address, or the baseline in a file. Raises BundleError on a damaged bundle, AskedWrongly if it is gone."""
    if not is_counted(address):
        path = keep_here(open_place(address))
        assert path is not None, "the driver has read it"
        return bundles.load(path, device)
    folder, _, name = address.rpartition("/")
    content = open_place(folder).read(name)
    if content is None:
        raise AskedWrongly(f"{address} is gone: remove what lies beside it, so that the next training fits it again")
    return (read_tfidf if name == TFIDF.file else read_word_list)(content)


def _none(_: Scored) -> dict[str, float]:
    return {}


def _likeliest(row: Scored) -> dict[str, float]:
    """The likeliest classes of a row, as many as `top5` counts; of equal ones the later goes first, as in that measure."""
    rising = sorted(row.probabilities.items(), key=lambda told: told[1])
    return dict(rising[::-1][:TOP])


def score_shard(addresses: Sequence[str], version: DataVersion, uses_gpu: bool, num_threads: int) -> list[list[Scored]]:
    """For the model at each address, a score row for each label of the version's samples. Models of one backbone run it once.

    In a worker, or the driver.
    """
    torch.set_num_threads(num_threads)
    models = {address: open_model(address, "cuda" if uses_gpu else "cpu") for address in addresses}
    rows: dict[str, list[Scored]] = {}
    for group in share_trunks(models):
        rows |= dict(zip(group, score_together(list(group.values()), version), strict=True))
    return [rows[address] for address in addresses]


def score_here(models: Sequence[Scorable], version: DataVersion, num_threads: int) -> list[list[list[Scored]]]:
    """The rows of `score_together` for each of several parts of the samples, each by a thread of this process.

    Threads within a layer, as torch has them, wait for each other there: where another program takes a part of one core, a pass
    takes five times as long. Masks are read by one thread all the same: several of an image's size at once could fill the memory.
    """
    of_masks = any(TASK_FACTS[head.task].tells == "pixels" for model in models for head in model.heads)
    num_parts = 1 if of_masks else max(1, min(num_threads, len(version.samples) // MIN_BATCH_SIZE))
    torch.set_num_threads(num_threads if num_parts == 1 else 1)
    parts = [replace(version, samples=version.samples[number::num_parts]) for number in range(num_parts)]
    read = partial(score_together, models, batch_size=max(MIN_BATCH_SIZE, BATCH_SIZE // num_parts))
    pool = ThreadPoolExecutor(num_parts, "scoring", torch.set_num_threads, (torch.get_num_threads(),))
    # For all threads: reading an image sets filters of warnings, which are the process's.
    with warnings.catch_warnings(action="ignore"), pool:
        return list(pool.map(read, parts))


def score_together(models: Sequence[Scorable], version: DataVersion, batch_size: int = BATCH_SIZE) -> list[list[Scored]]:
    """For each model of a group that `share_trunks` made, a score row for each label of the version's samples."""
    rows: list[list[Scored]] = [[] for _ in models]
    heads = [{head.target: head for head in model.heads} for model in models]
    prefetch(version, files_of(version, version.samples), threading.get_ident())
    # In batches: the masks of all images, at full size, could fill the memory.
    for numbers, by_model in _answers(models, version, batch_size):
        for kept, named, answers in zip(rows, heads, by_model, strict=True):
            for sample, by_target in zip((version.samples[number] for number in numbers), answers, strict=True):
                known = ((target, truth) for target in by_target if (truth := sample.labels.get(target)) is not None)
                kept += [_row(version, sample, named[target], truth, by_target[target]) for target, truth in known]
    return rows


def _answers(models: Sequence[Scorable], version: DataVersion, batch_size: int) -> Iterator[BatchAnswers]:
    samples = version.samples
    if bundled := [model for model in models if isinstance(model, Bundle)]:
        assert len(bundled) == len(models)
        yield from predict_together(bundled, (locate(version, sample) for sample in samples), batch_size)
        return
    for start in range(0, len(samples), batch_size):
        files = [locate(version, sample) for sample in samples[start : start + batch_size]]
        yield range(start, start + len(files)), [model.predict(files, batch_size) for model in models]


def _row(version: DataVersion, sample: Sample, head: Head, truth: str, answer: Answer) -> Scored:
    def read_mask() -> np.ndarray[Any, Any]:
        return decode_mask(locate_mask(version, truth), locate(version, sample), as_stored=version.masks[truth].as_stored)

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


def _read_holdout(job: Job, models: Mapping[str, Scorable]) -> list[list[Scored]]:
    """The rows of each model of a group, in an order that the way of computing them does not change."""
    group, uses_gpu, samples = job.workers, job.workers.gpus_per_worker > 0, job.version.samples
    num_shards = max(1, min(group.count, len(samples) // MIN_SHARD_SAMPLES[job.version.modality]))
    if not _forwards(models.values()) or (num_shards == 1 and not uses_gpu):
        # With the cores of the whole group.
        parts = score_here(list(models.values()), job.version, workers.cores_of(group))
    else:
        num_threads = max(1, int(group.cpus_per_worker))
        workers.join(group)
        addresses = [job.place.within(name).address for name in models]
        versions = [replace(job.version, samples=samples[i::num_shards]) for i in range(num_shards)]
        shards = [(addresses, part, uses_gpu, num_threads) for part in versions]
        parts = workers.map_shards(score_shard, shards, workers=group)
    of_each = (chain.from_iterable(rows) for rows in zip(*parts, strict=True))
    return [sorted(rows, key=lambda row: (row.digest, row.target, row.truth, row.predicted, row.probability)) for rows in of_each]
